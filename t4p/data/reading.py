"""From the needs of a node to entries of its cache: requests, many at a time, each for a large part. Threads.

Nothing here knows of steps or ranks: `t4p.data.fetcher` says what is wanted next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

from shards.errors import ShardError
from shards.reader import DatasetReader
from shards.rows import SampleRows
from shards.stores.cache import Incoming, NodeCache
from shards.stores.client import Part
from shards.stores.patient import PatientStore
from shards.stores.store import StoreError

PART_BYTES = 4 << 20  # of a request at most, unless one sample has more
IN_FLIGHT = 16  # requests
GAP_BYTES = 256 << 10  # between samples that are still read by one request


@dataclass(eq=False)
class Wanted:
    """Samples [start, stop) of a shard, to become one entry.

    Attributes:
        name: of the entry.
        shard_index: within the dataset of `reader`.
        rows: of the samples, once they are known.
    """

    name: str
    reader: DatasetReader
    shard_index: int
    start: int
    stop: int
    rows: SampleRows | None = None

    @property
    def first_byte(self) -> int:
        """Of the samples in their tar."""
        assert self.rows is not None
        return int(self.rows.table["offset"][0])

    @property
    def num_bytes(self) -> int:
        """Of the samples."""
        assert self.rows is not None
        return int(self.rows.table["offset"][-1]) + int(self.rows.table["length"][-1]) - self.first_byte


@dataclass(frozen=True)
class Outcome:
    """What became of something wanted.

    Attributes:
        is_there: it is in the cache; False where its rows are known now.
        problem: why neither is so; an OSError is the cache's.
    """

    wanted: Wanted
    is_there: bool = False
    problem: Exception | None = None


@dataclass(eq=False)
class _Load:
    """Entries of one shard that lie close together, read by the same requests."""

    entries: Sequence[tuple[Wanted, Incoming]]
    parts_left: int
    problem: Exception | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(eq=False)
class _FirstLook:
    """Whether something of a dataset's index was read already."""

    done: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Reading:
    """Requests in flight, by threads; what comes of them is taken from `outcomes`.

    Attributes:
        outcomes: of rows that were looked up, and of entries.
        in_flight: requests, those that wait for a thread included.
    """

    def __init__(self, cache: NodeCache) -> None:
        self.outcomes: SimpleQueue[Outcome | None] = SimpleQueue()  # None: only a request has ended
        self.in_flight = 0
        self._cache = cache
        self._counting = threading.Lock()
        self._first_looks: dict[str, _FirstLook] = {}  # by dataset
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._num_threads = 0
        self._versions: dict[tuple[str, str], str | None] = {}  # of each object, as its first answer said

    def look_up(self, wanted: Wanted) -> None:
        """Find the rows of what is wanted."""
        first = self._first_looks.setdefault(wanted.reader.url, _FirstLook())
        self._submit(self._look_up, wanted, first)

    def begin(self, group: Sequence[Wanted]) -> None:
        """Read what lies close together.

        Args:
            group: of one shard, in the order of the tar, rows known, as `close_together` gives them.

        Raises:
            OSError: the cache takes no more.
        """
        entries: list[tuple[Wanted, Incoming]] = []
        try:
            for wanted in group:
                assert wanted.rows is not None
                entries.append((wanted, self._cache.begin(wanted.name, wanted.rows.encode(), wanted.num_bytes)))
        except OSError:
            for _, incoming in entries:
                incoming.abandon()
            raise
        first, last = group[0].first_byte, group[-1].first_byte + group[-1].num_bytes
        cuts = parts_of(first, last)
        load = _Load(entries, len(cuts))
        for start, stop in cuts:
            self._submit(self._read, load, start, stop)

    def close(self) -> None:
        """End the threads, each after what it is at; nobody waits for it."""
        for _ in range(self._num_threads):
            self._calls.put(None)

    def _submit(self, call: Callable[..., Outcome | None], *arguments: Any) -> None:
        def work() -> None:
            outcome = call(*arguments)
            with self._counting:
                self.in_flight -= 1
            self.outcomes.put(outcome)

        with self._counting:
            self.in_flight += 1
        if self._num_threads < min(self.in_flight, IN_FLIGHT):
            self._num_threads += 1
            # Of their own, and not a pool's: an interpreter that ends waits for those, however long storage hangs.
            threading.Thread(target=self._serve, name="t4p-request", daemon=True).start()
        self._calls.put(work)

    def _serve(self) -> None:
        while (work := self._calls.get()) is not None:
            work()

    def _look_up(self, wanted: Wanted, first: _FirstLook) -> Outcome:
        try:
            with first.lock:
                if not first.done:  # an index that is small is read whole, and once
                    wanted.rows = wanted.reader.rows(wanted.shard_index, wanted.start, wanted.stop)
                    first.done = True
            wanted.rows = wanted.reader.rows(wanted.shard_index, wanted.start, wanted.stop)
        except Exception as error:
            return Outcome(wanted, problem=error)
        return Outcome(wanted)

    def _read(self, load: _Load, start: int, stop: int) -> None:
        """One part, written into the entries that it is of."""
        try:
            if load.problem is None:
                self._write(load, start, self._request(load.entries[0][0], start, stop))
        except Exception as error:
            load.problem = error
        with load.lock:
            load.parts_left -= 1
            if load.parts_left:
                return
        for wanted, incoming in load.entries:
            problem = load.problem
            try:
                if problem is None:
                    incoming.finish()
                else:
                    incoming.abandon()
            except OSError as error:
                problem = error
            self.outcomes.put(Outcome(wanted, problem is None, problem))

    def _request(self, wanted: Wanted, start: int, stop: int) -> list[bytes]:
        store, name = wanted.reader.tars, wanted.reader.manifest.tar_name(wanted.shard_index)
        assert isinstance(store, PatientStore)  # datasets in folders have no fetcher
        known = self._versions.get((store.url, name))
        part = Part(start, stop - start, version=known)
        store.fill(name, part)
        if self._versions.setdefault((store.url, name), part.version) != part.version:
            raise StoreError(f"{store.url}/{name}: the object was replaced while it was being read; try again")
        wanted.reader.check_version(wanted.shard_index, part)
        if part.num_received != stop - start:
            raise ShardError(f"{store.url}/{name}: ends at byte {part.position}, wanted {stop}; pack the shard again")
        return part.pieces

    def _write(self, load: _Load, start: int, pieces: Sequence[bytes]) -> None:
        if len(load.entries) == 1:
            wanted, incoming = load.entries[0]
            incoming.write(pieces, start - wanted.first_byte)
            return
        data = memoryview(b"".join(pieces))
        for wanted, incoming in load.entries:
            first = max(wanted.first_byte, start)
            last = min(wanted.first_byte + wanted.num_bytes, start + len(data))
            if first < last:
                incoming.write([data[first - start : last - start]], first - wanted.first_byte)


def parts_of(first: int, last: int, largest: int = PART_BYTES) -> list[tuple[int, int]]:
    """Bytes [first, last) in as few parts of at most `largest` as there can be, all of about one size."""
    count = max(1, -(-(last - first) // largest))
    edges = [first + (last - first) * i // count for i in range(count + 1)]
    return list(pairwise(edges))


def close_together(wanted: Sequence[Wanted], gap: int = GAP_BYTES, most: int = PART_BYTES) -> list[list[Wanted]]:
    """What one request is made for: neighbours of a shard with gaps up to `gap`, together at most `most` bytes.

    Args:
        wanted: rows known.
    """
    key: Callable[[Wanted], tuple[str, int, int]] = lambda one: (one.reader.url, one.shard_index, one.first_byte)  # noqa: E731
    groups: list[list[Wanted]] = []
    for one in sorted(wanted, key=key):
        if groups:
            group = groups[-1]
            same = group[0].reader is one.reader and group[0].shard_index == one.shard_index
            end = group[-1].first_byte + group[-1].num_bytes
            # Nothing overlaps that is wanted twice: a block, and a sample of it.
            if (
                same
                and end <= one.first_byte <= end + gap
                and one.first_byte + one.num_bytes - group[0].first_byte <= most
            ):
                group.append(one)
                continue
        groups.append([one])
    return groups
