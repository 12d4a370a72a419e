"""What loaders take from the cache of their node, and how long they wait for it."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from shards.errors import ShardError
from shards.reader import DatasetReader
from shards.rows import SampleRows
from shards.sample import Sample
from shards.stores.cache import Entry, NodeCache, entry_name
from t4p.data.board import Board

MOST_OPEN = 256  # entries that a process keeps open: as many as a batch takes samples of, mostly
_LOOK_EVERY = 0.002  # seconds, at first
# Seconds for a sample: a fetcher is at work, and beats, while one of its requests hangs for as long as the client bears
# that (20 s); who reads the sample alone meanwhile has it a request later.
WAITS_FOR = 3.0


@dataclass(frozen=True, slots=True)
class Ahead:
    """What is read ahead for a sample.

    Attributes:
        start, stop: samples of its shard that its node reads at once.
        micro_batch: it is trained in, counted from the start of the run.
    """

    start: int
    stop: int
    micro_batch: int


class Shelf:
    """The cache of a node as one process reads it. Picklable; survives a fork.

    Attributes:
        cache, board: of the node, and of it and the run.
    """

    def __init__(self, cache: NodeCache, board: Board) -> None:
        self.cache = cache
        self.board = board
        self._open: OrderedDict[tuple[str, int], tuple[Entry, SampleRows]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def take(
        self, reader: DatasetReader, shard_index: int, sample_index: int, ahead: Ahead
    ) -> tuple[str, Sample] | None:
        """A sample and its key out of the cache, checked; None where it is not there and does not come, or is damaged.

        Waits while the node's fetcher is at work on it, WAITS_FOR seconds at most.

        Args:
            shard_index: within the dataset of `reader`.
        """
        tar = reader.table.sha256[shard_index].tobytes()
        names = [entry_name(tar, ahead.start, ahead.stop), entry_name(tar, sample_index, sample_index + 1)]
        pause, until = _LOOK_EVERY, time.monotonic() + WAITS_FOR
        while True:
            comes = self.board.is_coming(ahead.micro_batch)  # before the look: what came between is seen
            for name in names:
                if (found := self._get(name, shard_index)) is not None:
                    return self._cut(reader, name, *found, sample_index)
            if not comes or time.monotonic() > until:
                return None
            time.sleep(pause)
            pause = min(1.5 * pause, 0.02)

    def _get(self, name: str, shard_index: int) -> tuple[Entry, SampleRows] | None:
        key = name, shard_index  # equal tars may stand elsewhere in another dataset
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        entry = self.cache.get(name)
        if entry is None:
            return None
        try:
            rows = SampleRows.decode(entry.rows)
        except ShardError:
            entry.close()
            self.cache.discard(name)
            return None
        rows = SampleRows(shard_index, rows.start, rows.table)
        self._open[key] = entry, rows
        if len(self._open) > MOST_OPEN:
            _, (oldest, _) = self._open.popitem(last=False)
            oldest.close()
        return entry, rows

    def _cut(
        self, reader: DatasetReader, name: str, entry: Entry, rows: SampleRows, sample_index: int
    ) -> tuple[str, Sample] | None:
        i = sample_index - rows.start
        offset, length = int(rows.table["offset"][i]), int(rows.table["length"][i])
        data = entry.read(offset - int(rows.table["offset"][0]), length)
        try:
            sample = reader.sample_from_slice(rows, i, None, data)
            return reader.key_of_slice(rows, i, data), sample
        except ShardError:  # as when storage altered what it sent: it is read again
            self._open.pop((name, rows.shard_index))
            entry.close()
            self.cache.discard(name)
            return None
