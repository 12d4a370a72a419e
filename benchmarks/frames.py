"""What benchmarks train on."""

from __future__ import annotations

from pathlib import Path

from record import REPOSITORY


def pack_frames(folder: Path) -> str:
    """The real frames that the repository carries, packed."""
    from shards.packing.pack import pack

    shards = str(folder / "shards")
    pack("tum", REPOSITORY / "tests" / "data" / "tum_rgbd", shards)
    return shards
