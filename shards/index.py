"""The index of a dataset, index.bin: a row per sample, then a block of keys per shard, each part fetched by range."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import google_crc32c
import numpy as np

from shards.doors.text import shown
from shards.errors import ShardError
from shards.manifest import Manifest
from shards.rows import ROW, SampleRows, ShardIndex, check_layout, damaged_rows
from shards.schema import KEY, is_key
from shards.stores.second_look import believed
from shards.stores.store import MissingObjectError, Store
from shards.table import ShardTable

Kept = TypeVar("Kept")

WHOLE_BYTES = 4 << 20  # an index up to here is read at once and kept: 10,000 samples
_MAX_CACHED = 64  # shards whose rows are kept, of a larger one: of 256 MiB each 50 MB
_KEYS = re.compile(rf"(?:{KEY.pattern}\n)+")


class IndexFile:
    """The index of a dataset of format 2."""

    def __init__(self, store: Store, manifest: Manifest, table: ShardTable) -> None:
        """Nothing is read yet."""
        self._store = store
        self._manifest = manifest
        self._table = table
        self._first_row = table.first_row
        self.where = f"{store.url}/{manifest.index_name}"
        self.forget()

    def forget(self) -> None:
        """Let go of what is kept."""
        self._whole: bytes | None = None
        self._rows: dict[int, SampleRows] = {}
        self._keys: dict[int, tuple[str, ...]] = {}

    def name_of(self, shard_index: int) -> str:
        """The object that holds the rows of a shard."""
        return self._manifest.index_name

    def rows(self, shard_index: int, start: int, stop: int) -> SampleRows:
        """Of samples [start, stop) of a shard; those of a whole shard are kept.

        Raises:
            ShardError: damaged, or not those of the shard in the shard table.
        """
        kept = self._rows.get(shard_index)
        if kept is not None:
            return kept.part(start, stop)
        num_samples = int(self._table.num_samples[shard_index])
        data, first = self.read_rows(shard_index, start, stop), int(self._first_row[shard_index]) + start
        if len(data) != (stop - start) * ROW.itemsize or (damaged := damaged_rows(data, first)):
            at = first + (damaged[0] if len(data) == (stop - start) * ROW.itemsize else len(data) // ROW.itemsize)
            raise ShardError(
                f"{self.where}: the row of sample {at - first + start} of shard {shard_index}, at byte "
                f"{at * ROW.itemsize}, is damaged; run verify, then pack again"
            )
        rows = SampleRows(shard_index, start, np.frombuffer(data, ROW))
        if stop - start == num_samples:
            check_layout(rows, int(self._table.size_bytes[shard_index]), f"{self.where}, shard {shard_index}")
            _keep(self._rows, shard_index, rows)
        return rows

    def read_rows(self, shard_index: int, start: int, stop: int) -> bytes:
        """The bytes of rows [start, stop) of a shard, damaged or not."""
        number = int(self._first_row[shard_index]) + start
        return self._range(
            number * ROW.itemsize,
            (stop - start) * ROW.itemsize,
            lambda data: len(data) == (stop - start) * ROW.itemsize and not damaged_rows(data, number),
        )

    def keys(self, shard_index: int) -> tuple[str, ...]:
        """Of the samples of a shard, in order.

        Raises:
            ShardError: their block is damaged.
        """
        kept = self._keys.get(shard_index)
        if kept is None:
            kept = self._parse_keys(shard_index, self.read_keys(shard_index))
            _keep(self._keys, shard_index, kept)
        return kept

    def read_keys(self, shard_index: int) -> bytes:
        """The block of keys of a shard, damaged or not."""
        offset, length = int(self._table.keys_offset[shard_index]), int(self._table.keys_length[shard_index])
        return self._range(offset, length, partial(self._are_keys, shard_index))

    def altered(self, rebuilt: ShardIndex) -> list[int]:
        """Positions of the samples of a shard whose row or key is damaged, or not what the tar says."""
        shard_index, num_samples = rebuilt.rows.shard_index, len(rebuilt.keys)
        try:
            data = self.read_rows(shard_index, 0, num_samples)
            keys = self.read_keys(shard_index).split(b"\n")
        except MissingObjectError:
            return list(range(num_samples))
        whole = data[: len(data) // ROW.itemsize * ROW.itemsize]
        rows = np.frombuffer(whole, ROW)
        wrong = set(damaged_rows(whole, int(self._first_row[shard_index]))) | set(range(len(rows), num_samples))
        for name in ("offset", "length"):
            wrong.update(np.flatnonzero(rows[name] != rebuilt.rows.table[name][: len(rows)]).tolist())
        wrong.update(i for i, key in enumerate(rebuilt.keys) if keys[i : i + 1] != [key.encode("ascii", "replace")])
        return sorted(wrong)

    def _are_keys(self, shard_index: int, block: bytes) -> bool:
        return bool(google_crc32c.value(block) == self._table.keys_crc32c[shard_index])

    def _parse_keys(self, shard_index: int, block: bytes) -> tuple[str, ...]:
        if not self._are_keys(shard_index, block):
            raise ShardError(
                f"{self.where}: the keys of shard {shard_index} are damaged: crc32c {google_crc32c.value(block):08x} "
                f"of {len(block)} bytes, wanted {self._table.keys_crc32c[shard_index]:08x} of "
                f"{self._table.keys_length[shard_index]}; run verify, then pack again"
            )
        text = block.decode("ascii", "replace")
        keys = tuple(text.split("\n")[:-1])
        num_samples = int(self._table.num_samples[shard_index])
        if not _KEYS.fullmatch(text):
            strange = next((key for key in keys if not is_key(key)), text[-40:])
            raise ShardError(
                f"{self.where}, shard {shard_index}: '{shown(strange)}' is no key: letters, digits, '-', '_' and one "
                "'/'; pack the dataset again"
            )
        if len(keys) != num_samples:
            raise ShardError(
                f"{self.where}: {len(keys)} keys of shard {shard_index}, the shard table says {num_samples} samples; "
                "pack the dataset again"
            )
        return keys

    def _range(self, offset: int, length: int, is_whole: Callable[[bytes], bool]) -> bytes:
        """A part of the index; of a small one all of it is read, once."""
        name = self._manifest.index_name
        if self._manifest.index_bytes > WHOLE_BYTES:
            return believed(self._store, partial(self._store.read_range, name, offset, length), is_whole)
        if self._whole is None:
            # One byte more than wanted is enough to tell that it is another file, however large.
            read = partial(self._store.read_range, name, 0, self._manifest.index_bytes + 1)
            self._whole = believed(self._store, read, self._is_index)
        return self._whole[offset : offset + length]

    def _is_index(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() == self._manifest.index_sha256


def _keep(kept: dict[int, Kept], shard_index: int, value: Kept) -> None:
    if len(kept) >= _MAX_CACHED:
        kept.pop(next(iter(kept)), None)
    kept[shard_index] = value
