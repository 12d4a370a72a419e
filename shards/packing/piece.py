"""What packing notes of a shard once it is finished: enough to go on after it, and its part of the dataset's index."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c

from shards.errors import ShardError
from shards.rows import ROW
from shards.table import ShardRow

_HEADER = struct.Struct("<8sQQIQ32s32s")
_MARK = b"t4p-idx2"
_CRC = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class ShardPiece:
    """A finished shard, without its bytes.

    Attributes:
        first_row: number of its first sample in the dataset.
        size_bytes: of the tar.
        sha256: of the tar.
        fingerprint: of the raw files it was made of.
        rows: of its samples, sealed.
        voxels: little-endian uint16 for each sample; 0 where nobody has counted.
        keys: of its samples, each followed by a newline.
    """

    first_row: int
    size_bytes: int
    sha256: bytes
    fingerprint: bytes
    rows: bytes
    voxels: bytes
    keys: bytes

    @classmethod
    def of_samples(
        cls,
        first_row: int,
        size_bytes: int,
        sha256: bytes,
        fingerprint: bytes,
        rows: Sequence[bytes],
        voxels: Sequence[int],
        keys: Sequence[str],
    ) -> ShardPiece:
        """Of what is known of each sample."""
        return cls(
            first_row=first_row,
            size_bytes=size_bytes,
            sha256=sha256,
            fingerprint=fingerprint,
            rows=b"".join(rows),
            voxels=struct.pack(f"<{len(voxels)}H", *voxels),
            keys="".join(f"{key}\n" for key in keys).encode("ascii"),
        )

    @property
    def num_samples(self) -> int:
        """Samples of the shard."""
        return len(self.rows) // ROW.itemsize

    @property
    def table_row(self) -> ShardRow:
        """Its row in the shard table."""
        return ShardRow(
            num_samples=self.num_samples,
            size_bytes=self.size_bytes,
            sha256=self.sha256,
            keys_length=len(self.keys),
            keys_crc32c=int(google_crc32c.value(self.keys)),
        )

    def key_list(self) -> list[str]:
        """The keys of its samples."""
        return self.keys.decode("ascii").split("\n")[:-1]

    def encode(self) -> bytes:
        """Its bytes, with their crc32c at the end."""
        counts = (self.first_row, self.size_bytes, self.num_samples, len(self.keys))
        body = _HEADER.pack(_MARK, *counts, self.sha256, self.fingerprint) + self.rows + self.voxels + self.keys
        return body + _CRC.pack(google_crc32c.value(body))

    @staticmethod
    def is_whole(data: bytes) -> bool:
        """Whether these are the bytes of a piece as they were written."""
        body, crc = data[: -_CRC.size], data[-_CRC.size :]
        return data.startswith(_MARK) and crc == _CRC.pack(google_crc32c.value(body))

    @classmethod
    def decode(cls, data: bytes) -> ShardPiece:
        """Read what `encode` gave.

        Raises:
            ShardError: the bytes are others.
        """
        if not cls.is_whole(data):
            raise ShardError(f"{len(data)} bytes are not the notes of a finished shard; pack it again")
        _, first_row, size_bytes, num_samples, num_keys, sha256, fingerprint = _HEADER.unpack_from(data)
        at, parts = _HEADER.size, []
        for length in (num_samples * ROW.itemsize, 2 * num_samples, num_keys):
            parts.append(data[at : at + length])
            at += length
        return cls(first_row, size_bytes, sha256, fingerprint, *parts)
