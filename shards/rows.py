"""The rows of a dataset's index: where each sample lies and what a loader must know of it, in fixed columns."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.slices import archive_end

# Kinds of member, in the order of the columns that say where they begin and how long they are.
MEMBER_KINDS = ("color", "depth", "meta", "semantic", "instance", "boxes", "caption", "points")
HAS_CRC, DESCRIBED, HAS_POSE, HAS_TIMESTAMP, COLOR_IS_PNG, DEPTH_IS_ZST = (1 << bit for bit in range(6))
ROW = np.dtype(
    [
        ("offset", "<u8"),  # of the sample in its tar
        ("length", "<u4"),  # of all headers, contents and padding
        ("crc32c", "<u4"),  # over exactly these bytes; counts where the flag says so
        ("flags", "<u2"),
        ("dataset", "<u2"),  # position in the manifest's names of datasets
        ("no_reading", "<u4"),  # value of depth; 0 for none
        ("member_offset", "<u4", len(MEMBER_KINDS)),  # from the start of the sample to the content; 0 is absent
        ("member_size", "<u4", len(MEMBER_KINDS)),
        ("color_size", "<u2", 2),  # width, height
        ("depth_size", "<u2", 2),
        ("depth_scale", "<f8"),
        ("timestamp", "<f8"),
        ("K_depth", "<f8", 5),  # fx, s, fy, cx, cy: pixels
        ("K_color", "<f8", 5),
        ("color_from_depth", "<f8", 12),  # the first three rows
        ("world_from_camera", "<f8", 12),
        ("num_points", "<u4"),  # of a scene
        ("row_crc32c", "<u4"),  # over the number of the row in the dataset (u8) and all columns before this one
    ]
)
assert ROW.itemsize == 392
_OFFSET = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<QQ")


@dataclass(frozen=True, eq=False)
class SampleRows:
    """Rows of consecutive samples of one shard. Picklable; of a dataset of format 1 they say place and crc32c only.

    Attributes:
        shard_index: the shard they are of.
        start: position in it of the first of them.
        table: (n,) ROW.
    """

    shard_index: int
    start: int
    table: NDArray[np.void]

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("shard_index", "start", "table")}  # nothing that is cached

    def __len__(self) -> int:
        return len(self.table)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(n,) bytes from the start of the tar to the sample's first header."""
        return self.table["offset"].astype(np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) bytes of all headers, contents and padding of a sample."""
        return self.table["length"].astype(np.int64)

    @property
    def crc32c(self) -> NDArray[np.uint32]:
        """(n,) over exactly these bytes, where `has_crc`."""
        return self.table["crc32c"].astype(np.uint32)

    @property
    def has_crc(self) -> NDArray[np.bool_]:
        """(n,) whether the checksum of a sample is known: it is not where only headers were read."""
        return (self.table["flags"] & HAS_CRC) != 0

    def part(self, start: int, stop: int) -> SampleRows:
        """Rows [start, stop) of these."""
        return SampleRows(self.shard_index, self.start + start, self.table[start:stop])

    def encode(self) -> bytes:
        """Bytes that a cache may keep."""
        body = _HEADER.pack(self.shard_index, self.start) + self.table.tobytes()
        return body + _CRC.pack(google_crc32c.value(body))

    @classmethod
    def decode(cls, data: bytes) -> SampleRows:
        """Read what `encode` gave.

        Raises:
            ShardError: the bytes are others.
        """
        body, crc = data[: -_CRC.size], data[-_CRC.size :]
        if (len(body) - _HEADER.size) % ROW.itemsize or crc != _CRC.pack(google_crc32c.value(body)):
            raise ShardError(f"{len(data)} bytes are no rows of samples as they were kept; fetch them again")
        shard_index, start = _HEADER.unpack_from(body)
        return cls(shard_index, start, np.frombuffer(body, ROW, offset=_HEADER.size))


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All samples of one shard: their keys and rows, in the order of the tar."""

    keys: tuple[str, ...]
    rows: SampleRows

    @property
    def offsets(self) -> NDArray[np.int64]:
        """As of `SampleRows`."""
        return self.rows.offsets

    @property
    def lengths(self) -> NDArray[np.int64]:
        """As of `SampleRows`."""
        return self.rows.lengths

    @property
    def crc32c(self) -> NDArray[np.uint32]:
        """As of `SampleRows`."""
        return self.rows.crc32c


def bare_rows(
    shard_index: int, offsets: Sequence[int], lengths: Sequence[int], crc32c: Sequence[int] | None
) -> SampleRows:
    """Rows that say where samples lie, and their crc32c where it is known, and nothing else."""
    table = np.zeros(len(offsets), ROW)
    table["offset"], table["length"] = offsets, lengths
    if crc32c is not None:
        table["crc32c"], table["flags"] = crc32c, HAS_CRC
    return SampleRows(shard_index, 0, table)


def sealed_row(row: bytes, offset: int, number: int) -> bytes:
    """A row of its place: `offset` of the sample in its tar, `number` of the row in the dataset, and its checksum."""
    content = _OFFSET.pack(offset) + row[_OFFSET.size : -_CRC.size]
    return content + _CRC.pack(_crc_of_row(content, number))


def damaged_rows(data: bytes, first_number: int) -> list[int]:
    """Positions of the rows in `data` whose checksum is not that of row first_number, first_number + 1, ..."""
    size = ROW.itemsize
    return [
        i
        for i in range(-(-len(data) // size))
        if data[(i + 1) * size - _CRC.size : (i + 1) * size]
        != _CRC.pack(_crc_of_row(data[i * size : (i + 1) * size - _CRC.size], first_number + i))
    ]


def check_layout(rows: SampleRows, size_bytes: int, where: str) -> None:
    """Raise ShardError unless the samples of a whole shard fill a tar of `size_bytes` without gap or overlap."""
    ends = rows.offsets + rows.lengths
    end = int(ends[-1]) if len(ends) else 0
    contiguous = np.array_equal(rows.offsets, [0, *ends[:-1]]) and bool((rows.lengths > 0).all())
    if not contiguous or end + len(archive_end(end)) != size_bytes:
        raise ShardError(
            f"{where}: its samples do not fill the {size_bytes} bytes of the shard one after the other (the last ends "
            f"at byte {end}); it is not the index of this shard, run verify, then pack again"
        )


def _crc_of_row(content: bytes, number: int) -> int:
    return int(google_crc32c.extend(google_crc32c.value(_OFFSET.pack(number)), content))
