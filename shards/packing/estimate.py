"""What packing would make, and how long it would take: by packing a few samples into nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from shards.packing.frame_tasks import load_frame
from shards.packing.options import Check, DepthCodec
from shards.packing.selection import Selection, find_tasks, spread
from shards.sources.formats import find_format
from shards.sources.options import SourceOptions

_TRIED = 16  # samples, spread over the source


@dataclass(frozen=True)
class PackEstimate:
    """What a dataset would be.

    Attributes:
        num_samples: in it.
        num_scenes: they are of.
        num_shards: it would have.
        size_bytes: of all tars, about.
        seconds: of one process that reads and checks them, about; storing them comes on top.
        tried: samples that were read for it.
    """

    num_samples: int
    num_scenes: int
    num_shards: int
    size_bytes: int
    seconds: float
    tried: int

    def text(self, src: str | Path, num_workers: int) -> str:
        """For people."""
        return (
            f"{src}: {self.num_samples} samples of {self.num_scenes} scenes, about {self.size_bytes / 1e6:.1f} MB in "
            f"{self.num_shards} shards; reading and checking takes about {self.seconds / num_workers:.0f} s with "
            f"{num_workers} workers, storing comes on top ({self.tried} samples were tried, nothing was written)"
        )


def estimate(
    source_format: str,
    src: str | Path,
    told: SourceOptions,
    selection: Selection,
    shard_size_bytes: int,
    check: Check,
    depth_codec: DepthCodec,
    color_size: tuple[int, int] | None,
) -> PackEstimate:
    """What `pack` would make of the same arguments.

    Raises:
        CallError, ShardError: as `pack`, as far as the samples that are tried show it.
    """
    chosen = find_format(source_format)
    tasks = find_tasks(chosen, Path(src), told, selection)
    tried = [tasks[place] for place in spread(range(len(tasks)), _TRIED)]
    start = time.monotonic()
    sizes = [len(load_frame(chosen.read, check, depth_codec, color_size, task).data) for task in tried]
    seconds = (time.monotonic() - start) / len(tried) * len(tasks)
    size_bytes = sum(sizes) * len(tasks) // len(tried)
    return PackEstimate(
        num_samples=len(tasks),
        num_scenes=len({task.ref.scene_id for task in tasks}),
        num_shards=-(-size_bytes // shard_size_bytes),
        size_bytes=size_bytes,
        seconds=seconds,
        tried=len(tried),
    )
