"""Samples to tars: size-capped, byte-deterministic shards, written by webdataset's own TarWriter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import google_crc32c
import numpy as np

from shards.manifest import ShardIndex, ShardRow, shard_name
from shards.slices import archive_end, sample_slice


@dataclass(frozen=True, eq=False)
class FinishedShard:
    """A complete tar in the scratch folder, ready to be stored.

    Attributes:
        shard_index: position in the dataset.
        path: the tar.
        row: its line in the shard table.
        index: its samples.
    """

    shard_index: int
    path: Path
    row: ShardRow
    index: ShardIndex


class ShardWriter:
    """Fills tars one after the other, in the order samples are added; one sequential writer per dataset."""

    def __init__(self, scratch: Path, shard_size_bytes: int, first_shard_index: int = 0) -> None:
        """Write into the folder `scratch`; a shard stays within shard_size_bytes unless a single sample does not."""
        self._scratch = scratch
        self._shard_size_bytes = shard_size_bytes
        self._shard_index = first_shard_index
        self._open: _OpenShard | None = None

    def add(self, key: str, members: Mapping[str, bytes]) -> FinishedShard | None:
        """Append a sample; returns the shard before it when the sample had to start a new one."""
        data = sample_slice(key, members)
        finished = None
        if self._open is not None:
            length = self._open.length + len(data)
            if length + len(archive_end(length)) > self._shard_size_bytes:
                finished = self.finish()
        if self._open is None:
            self._open = _OpenShard(self._scratch / shard_name(self._shard_index))
        self._open.append(key, data)
        return finished

    def finish(self) -> FinishedShard | None:
        """Complete the shard being filled; None when there is none."""
        if self._open is None:
            return None
        finished = self._open.finish(self._shard_index)
        self._open = None
        self._shard_index += 1
        return finished

    def abandon(self) -> None:
        """Close the shard being filled without completing it."""
        if self._open is not None:
            self._open.file.close()
            self._open = None


class _OpenShard:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: IO[bytes] = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.length = 0
        self.samples: list[tuple[str, int, int, int]] = []

    def append(self, key: str, data: bytes) -> None:
        self.samples.append((key, self.length, len(data), google_crc32c.value(data)))
        self._write(data)

    def finish(self, shard_index: int) -> FinishedShard:
        self._write(archive_end(self.length))
        self.file.close()
        keys, offsets, lengths, crcs = zip(*self.samples, strict=True)
        return FinishedShard(
            shard_index=shard_index,
            path=self.path,
            row=ShardRow(len(keys), self.length, self.sha256.digest()),
            index=ShardIndex(
                keys=keys,
                offsets=np.array(offsets, dtype=np.int64),
                lengths=np.array(lengths, dtype=np.int64),
                crc32c=np.array(crcs, dtype=np.uint32),
            ),
        )

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.length += len(data)
