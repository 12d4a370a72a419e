"""The indexes of datasets of format 1, a text beside each tar with a line per sample: read, never written."""

from __future__ import annotations

from functools import partial

import google_crc32c

from shards.doors.text import shown
from shards.errors import ShardError
from shards.rows import SampleRows, ShardIndex, bare_rows, check_layout
from shards.schema import is_key
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store
from shards.table import ShardTable

_MAX_LINE_BYTES = 100 + 2 * len("\t1125899906842624") + len("\t01234567\n")  # key, counts, crc
_MAX_LENGTH = (1 << 32) - 1
_MAX_OFFSET = 1 << 50
_MAX_CACHED = 512  # of 256 MiB shards: about 130 GiB of samples, 100 MB of index


def lines_name(shard_index: int) -> str:
    """Name of a shard's index."""
    return f"shard-{shard_index:06d}.idx"


class LineIndexes:
    """The indexes of a dataset of format 1, each fetched at first use."""

    def __init__(self, store: Store, table: ShardTable) -> None:
        """Nothing is read yet."""
        self._store = store
        self._table = table
        self._kept: dict[int, ShardIndex] = {}

    def forget(self) -> None:
        """Let go of what is kept."""
        self._kept = {}

    def name_of(self, shard_index: int) -> str:
        """The object that holds the rows of a shard."""
        return lines_name(shard_index)

    def keys(self, shard_index: int) -> tuple[str, ...]:
        """Of the samples of a shard, in order. Raises as `rows`."""
        return self._index(shard_index).keys

    def rows(self, shard_index: int, start: int, stop: int) -> SampleRows:
        """Of samples [start, stop) of a shard.

        Raises:
            ShardError: the index is damaged, or not that of the shard in the shard table.
        """
        return self._index(shard_index).rows.part(start, stop)

    def altered(self, rebuilt: ShardIndex) -> list[int]:
        """Positions of the samples of a shard whose line is not in its index as the tar says."""
        try:
            found = set(self._read(rebuilt.rows.shard_index).splitlines())
        except MissingObjectError:
            found = set()
        return [i for i, line in enumerate(_lines(rebuilt)) if line not in found]

    def _index(self, shard_index: int) -> ShardIndex:
        kept = self._kept.get(shard_index)
        if kept is not None:
            return kept
        where = f"{self._store.url}/{lines_name(shard_index)}"
        index = parse_lines(self._read(shard_index), shard_index, where)
        if len(index.keys) != self._table.num_samples[shard_index]:
            raise ShardError(
                f"{where}: {len(index.keys)} samples, the shard table says {self._table.num_samples[shard_index]}; "
                "pack the dataset again"
            )
        check_layout(index.rows, int(self._table.size_bytes[shard_index]), where)
        if len(self._kept) >= _MAX_CACHED:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[shard_index] = index
        return index

    def _read(self, shard_index: int) -> bytes:
        most = (int(self._table.num_samples[shard_index]) + 1) * _MAX_LINE_BYTES
        read = partial(self._store.read_range, lines_name(shard_index), 0, most + 1)
        return believed(self._store, read, _is_whole)


def parse_lines(data: bytes, shard_index: int, where: str) -> ShardIndex:
    """Read an .idx: key, offset, length and crc32c of each sample, and a last line with the crc32c of all before it.

    Raises:
        ShardError: truncated, altered or malformed.
    """
    body, marker, last = data.rpartition(b"#crc32c\t")
    if not _is_whole(data):
        found = google_crc32c.value(body)
        wanted = shown(last.strip().decode("ascii", "replace"), 20) if marker else "a last line '#crc32c ...'"
        raise ShardError(
            f"{where}: the index is damaged: crc32c {found:08x} of {len(data)} bytes, wanted {wanted}; "
            "run verify, then pack again"
        )
    try:
        lines = [line.split("\t") for line in body.decode("ascii").splitlines()]
        if strange := [key for key, _, _, _ in lines if not is_key(key)]:
            raise ValueError(f"'{shown(strange[0])}' is no key: letters, digits, '-', '_' and one '/'")
        offsets = [int(offset) for _, offset, _, _ in lines]
        lengths = [int(length) for _, _, length, _ in lines]
        crcs = [int(crc, 16) for _, _, _, crc in lines]
        for numbers, most in ((offsets, _MAX_OFFSET), (lengths, _MAX_LENGTH), (crcs, _MAX_LENGTH)):
            if beyond := [number for number in numbers if not 0 <= number <= most]:
                raise ValueError(f"{shown(beyond[0], 40)} is beyond what a shard holds")
    except ValueError as error:
        raise ShardError(f"{where}: malformed index line ({shown(error)}); pack the dataset again") from error
    return ShardIndex(tuple(key for key, _, _, _ in lines), bare_rows(shard_index, offsets, lengths, crcs))


def _lines(index: ShardIndex) -> list[bytes]:
    """The line of each sample, as an .idx has it."""
    rows = index.rows
    columns = zip(index.keys, rows.offsets.tolist(), rows.lengths.tolist(), rows.crc32c.tolist(), strict=True)
    return [b"%s\t%d\t%d\t%08x" % (key.encode("ascii"), offset, length, crc) for key, offset, length, crc in columns]


def _is_whole(data: bytes) -> bool:
    """Whether the last line is the crc32c of those before it."""
    body, marker, last = data.rpartition(b"#crc32c\t")
    return bool(marker) and last == b"%08x\n" % google_crc32c.value(body)
