"""Samples to tars: size-capped, byte-deterministic shards, in the order in which samples come."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from shards.manifest import shard_name
from shards.packing.frame_tasks import LoadedFrame, fingerprint_of_shard
from shards.packing.piece import ShardPiece
from shards.rows import sealed_row
from shards.slices import archive_end


@dataclass(frozen=True, eq=False)
class FinishedShard:
    """A complete tar in the scratch folder, ready to be stored.

    Attributes:
        shard_index: position in the dataset.
        path: the tar.
        piece: what is noted of it.
    """

    shard_index: int
    path: Path
    piece: ShardPiece


class ShardWriter:
    """Fills tars one after the other, in the order samples are added; one sequential writer per dataset."""

    def __init__(self, scratch: Path, shard_size_bytes: int, first_shard_index: int = 0, first_row: int = 0) -> None:
        """Write into the folder `scratch`; a shard stays within shard_size_bytes unless a single sample does not."""
        self._scratch = scratch
        self._shard_size_bytes = shard_size_bytes
        self._shard_index = first_shard_index
        self._first_row = first_row
        self._open: _OpenShard | None = None

    def add(self, key: str, sample: LoadedFrame) -> FinishedShard | None:
        """Append a sample; returns the shard before it when the sample had to start a new one."""
        finished = None
        if self._open is not None:
            length = self._open.length + len(sample.data)
            if length + len(archive_end(length)) > self._shard_size_bytes:
                finished = self.finish()
        if self._open is None:
            self._open = _OpenShard(self._scratch / shard_name(self._shard_index), self._first_row)
        self._open.append(key, sample)
        return finished

    def finish(self) -> FinishedShard | None:
        """Complete the shard being filled; None when there is none."""
        if self._open is None:
            return None
        finished = FinishedShard(self._shard_index, self._open.path, self._open.finish())
        self._open = None
        self._shard_index += 1
        self._first_row += finished.piece.num_samples
        return finished

    def abandon(self) -> None:
        """Close the shard being filled without completing it."""
        if self._open is not None:
            self._open.file.close()
            self._open = None


class _OpenShard:
    def __init__(self, path: Path, first_row: int) -> None:
        self.path = path
        self.first_row = first_row
        self.file: IO[bytes] = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.length = 0
        self.rows: list[bytes] = []
        self.keys: list[str] = []
        self.voxels: list[int] = []
        self.fingerprints: list[bytes] = []

    def append(self, key: str, sample: LoadedFrame) -> None:
        self.rows.append(sealed_row(sample.row, self.length, self.first_row + len(self.rows)))
        self.keys.append(key)
        self.voxels.append(sample.num_voxels)
        self.fingerprints.append(sample.fingerprint)
        self._write(sample.data)

    def finish(self) -> ShardPiece:
        self._write(archive_end(self.length))
        self.file.close()
        return ShardPiece.of_samples(
            first_row=self.first_row,
            size_bytes=self.length,
            sha256=self.sha256.digest(),
            fingerprint=fingerprint_of_shard(self.fingerprints),
            rows=self.rows,
            voxels=self.voxels,
            keys=self.keys,
        )

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.length += len(data)
