"""The shard table shards.bin, a fixed-width row per shard: all that ordering the samples of a dataset needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.manifest import MAX_COUNT, Manifest
from shards.rows import ROW
from shards.versions import is_of_version

_ROW_1 = np.dtype([("num_samples", "<u8"), ("size_bytes", "<u8"), ("sha256", "u1", 32)])
_ROW = np.dtype([*_ROW_1.descr, ("keys_offset", "<u8"), ("keys_length", "<u4"), ("keys_crc32c", "<u4")])


@dataclass(frozen=True)
class ShardRow:
    """One shard in the table: samples, bytes and sha256 of its tar, and its block of keys."""

    num_samples: int
    size_bytes: int
    sha256: bytes
    keys_length: int
    keys_crc32c: int


@dataclass(frozen=True, eq=False)
class ShardTable:
    """All shards of a dataset, by shard index.

    Attributes:
        num_samples: (S,) int64.
        size_bytes: (S,) int64.
        sha256: (S, 32) uint8, of the tar, or where not `is_hashed` of its version.
        keys_offset: (S,) int64, of the shard's block of keys in index.bin; 0 in a dataset of format 1.
        keys_length: (S,) int64.
        keys_crc32c: (S,) uint32.
    """

    num_samples: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    sha256: NDArray[np.uint8]
    keys_offset: NDArray[np.int64]
    keys_length: NDArray[np.int64]
    keys_crc32c: NDArray[np.uint32]

    @property
    def first_row(self) -> NDArray[np.int64]:
        """(S,) number of each shard's first sample in the dataset."""
        return np.cumsum(self.num_samples) - self.num_samples

    @property
    def is_hashed(self) -> NDArray[np.bool_]:
        """(S,) whether `sha256` is of the tar's bytes: else of its version (`shards.versions`), the bytes unread."""
        return np.array([not is_of_version(row.tobytes()) for row in self.sha256])

    @staticmethod
    def encoded_size(manifest: Manifest) -> int:
        """Bytes of the table that a manifest speaks of."""
        return manifest.num_shards * _dtype(manifest.format_version).itemsize

    @classmethod
    def from_rows(cls, rows: Sequence[ShardRow]) -> ShardTable:
        """Stack rows; the blocks of keys follow the rows of all samples in index.bin, in the order of the shards."""
        num_samples = np.array([row.num_samples for row in rows], dtype=np.int64)
        keys_length = np.array([row.keys_length for row in rows], dtype=np.int64)
        return cls(
            num_samples=num_samples,
            size_bytes=np.array([row.size_bytes for row in rows], dtype=np.int64),
            sha256=np.frombuffer(b"".join(row.sha256 for row in rows), dtype=np.uint8).reshape(-1, 32),
            keys_offset=num_samples.sum() * ROW.itemsize + np.cumsum(keys_length) - keys_length,
            keys_length=keys_length,
            keys_crc32c=np.array([row.keys_crc32c for row in rows], dtype=np.uint32),
        )

    def encode(self) -> bytes:
        """The bytes of shards.bin, format 2."""
        rows = np.empty(len(self.num_samples), dtype=_ROW)
        for name in _ROW.names or ():
            rows[name] = getattr(self, name)
        return rows.tobytes()

    @classmethod
    def decode(cls, data: bytes, manifest: Manifest, where: str) -> ShardTable:
        """Read shards.bin, of either format.

        Raises:
            ShardError: not the bytes that the manifest vouches for.
        """
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest.shards_sha256:
            raise ShardError(
                f"{where}: sha256 is {digest} ({len(data)} bytes), the manifest says {manifest.shards_sha256} "
                f"({cls.encoded_size(manifest)} bytes); the shard table is damaged, pack the dataset again"
            )
        if len(data) != cls.encoded_size(manifest):
            raise ShardError(f"{where}: {len(data)} bytes are not the {manifest.num_shards} rows of the manifest")
        rows = np.frombuffer(data, dtype=_dtype(manifest.format_version))
        counts = np.concatenate([rows["num_samples"], rows["size_bytes"]])
        if counts.min() < 1 or counts.max() >= MAX_COUNT:
            raise ShardError(f"{where}: a shard without samples, or with more than there are; pack the dataset again")
        whole = np.zeros(len(rows), dtype=_ROW)
        for name in rows.dtype.names or ():
            whole[name] = rows[name]
        table = cls(
            num_samples=whole["num_samples"].astype(np.int64),
            size_bytes=whole["size_bytes"].astype(np.int64),
            sha256=whole["sha256"].copy(),
            keys_offset=whole["keys_offset"].astype(np.int64),
            keys_length=whole["keys_length"].astype(np.int64),
            keys_crc32c=whole["keys_crc32c"].astype(np.uint32),
        )
        totals = (int(table.num_samples.sum()), int(table.size_bytes.sum()))
        if totals != (manifest.num_samples, manifest.size_bytes):
            raise ShardError(
                f"{where}: rows add up to {totals[0]} samples and {totals[1]} bytes, the manifest says "
                f"{manifest.num_samples} and {manifest.size_bytes}; pack the dataset again"
            )
        if manifest.format_version > 1 and not table._has_its_keys(manifest.index_bytes):
            raise ShardError(f"{where}: the blocks of keys do not follow the rows of index.bin; pack the dataset again")
        return table

    def _has_its_keys(self, index_bytes: int) -> bool:
        ends = self.keys_offset + self.keys_length
        first = int(self.num_samples.sum()) * ROW.itemsize
        return bool(np.array_equal(self.keys_offset, [first, *ends[:-1]]) and ends[-1] == index_bytes)


def _dtype(format_version: int) -> np.dtype[np.void]:
    return _ROW_1 if format_version == 1 else _ROW
