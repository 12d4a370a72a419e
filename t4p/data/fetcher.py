"""Read ahead what the ranks of a node will train, in large parts, into its cache: one process a node and run.

The order says what comes, so it walks the needs of the node, so many micro-batches ahead of its slowest rank, and keeps
many requests in flight. Loaders take samples out of the cache, and read one themselves where it does not come. The
process is `t4p-fetcher`; the first rank of the node starts it, and starts it again where it dies or hangs.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import queue
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from shards.stores.cache import NodeCache, entry_name
from shards.stores.patient import PatientStore
from t4p.data.board import Board, FetchCounts
from t4p.data.fetch import Catalogue
from t4p.data.needs import Need, Needs
from t4p.data.reading import IN_FLIGHT, Outcome, Reading, Wanted, close_together
from t4p.heartbeat import title_process

AHEAD = 64  # micro-batches, at least
AHEAD_SAMPLES = 512  # or more of them: a micro-batch may be one sample, as in a validation
SOON = 2  # micro-batches ahead of a rank, from where on nobody waits for room in the cache
MOST_COLD_BYTES = 64 << 20  # of blocks that a first batch waits for
LOOK_EVERY = 0.1  # seconds
# Seconds that an entry is taken to be there: who needs it and finds that another run has removed it reads it itself.
SEEN_FOR = 1.0
CACHE_IS_FULL = 3  # exit status: it is not to be started again
MOST_TOLD = 5  # problems


@dataclass(frozen=True)
class FetchJob:
    """What a fetcher is given.

    Attributes:
        needs: of its node.
    """

    catalogue: Catalogue
    needs: Needs
    cache: NodeCache
    board: Board

    def micro_batches(self) -> Iterator[tuple[int, tuple[Need, ...]]]:
        """(number, needs) of what is still to come."""
        first = max(self.board.slowest(), self.needs.first)
        return enumerate(self.needs.since(first), first)


class Fetcher:
    """What is wanted, what is in flight, and what is there. `run` is all there is to do."""

    def __init__(self, job: FetchJob, *, num_first: int | None = None) -> None:
        """Begin where the slowest rank stands; nothing is read yet.

        Args:
            num_first: for so many micro-batches alone, and of large blocks their samples alone; None for all.
        """
        self._job = job
        self._num_first = num_first
        self._cache = job.cache
        self._board = job.board
        self._reading = Reading(job.cache)
        self._used, self._unseen = 0, job.cache.limit_bytes  # bytes of the cache when it was looked at, and since then
        self._coming = islice(job.micro_batches(), num_first)
        self._next: tuple[int, tuple[Need, ...]] | None = next(self._coming, None)
        self._first = self._next[0] if self._next else 0
        # Micro-batches that were begun, in order, each with the names that it still waits for.
        self._open: deque[tuple[int, set[str]]] = deque()
        self._last_use: dict[str, int] = {}  # micro-batch, of each entry that is there or comes
        self._seen: dict[str, float] = {}  # when an entry was there, in seconds
        self._to_look_up: deque[Wanted] = deque()
        self._later: deque[Wanted] = deque()  # when there is nothing else to look up
        self._ready: list[Wanted] = []
        self._at_work: set[str] = set()  # names that are wanted and neither there nor given up
        self._hits = 0
        self._before = job.board.counts()  # of other fetchers of this run
        self._of_stores = self._counts_of_stores()  # and of what was read over the same connections
        self._told = 0

    def run(self) -> int:
        """Until all is there that will be needed; an exit status."""
        parent = os.getppid()
        try:
            while self._next or self._open:
                if os.getppid() != parent or not self._board.path.exists():
                    return 0  # whoever wanted it is gone
                slowest = self._board.slowest()
                self._take(slowest)
                self._start(slowest)
                self._board.beat(is_first=self._num_first is not None)
                self._collect()
                self._report(slowest)
        except OSError as error:
            print(  # noqa: T201
                f"{self._cache.folder}: the cache of samples takes no more ({error.strerror or error}): from here on "
                "samples are read one by one; make room there, or give another data.cache_dir",
                flush=True,
            )
            return CACHE_IS_FULL
        finally:
            self._reading.close()
        return 0

    def _take(self, slowest: int) -> None:
        """Note what the next micro-batches need, as far ahead as is allowed."""
        while self._next and len(self._at_work) < 4 * IN_FLIGHT:
            number, found = self._next
            if number >= slowest + max(AHEAD, AHEAD_SAMPLES // max(len(found), 1)):
                return
            self._next = next(self._coming, None)
            waits: set[str] = set()
            alone = number < self._first + SOON and self._block_bytes(found) > MOST_COLD_BYTES
            for need in found:
                self._want(need, number, waits, alone=alone)
            self._open.append((number, waits))

    def _want(self, need: Need, number: int, waits: set[str], *, alone: bool) -> None:
        """Note one sample. `alone`: its block comes later, and this micro-batch does not wait for it."""
        reader, shard_index, before = self._job.catalogue.locate(need.shard_index)
        if not isinstance(reader.tars, PatientStore):
            return  # a folder: the system keeps what was read of it
        tar = reader.table.sha256[shard_index].tobytes()
        ranges = [(before + need.start, before + need.stop)]
        if alone:
            ranges.insert(0, (before + need.sample_index, before + need.sample_index + 1))
        for k, (start, stop) in enumerate(ranges[: self._num_first and 1]):
            name = entry_name(tar, start, stop)
            self._last_use[name] = number
            if name not in self._at_work:
                if self._is_there(name):
                    self._hits += k == 0
                    continue
                self._at_work.add(name)
                (self._to_look_up if k == 0 else self._later).append(Wanted(name, reader, shard_index, start, stop))
            if k == 0:
                waits.add(name)

    def _is_there(self, name: str) -> bool:
        """Whether the cache has an entry, which counts as a use of it; it is looked for once in a while."""
        now = time.monotonic()
        if now < self._seen.get(name, -math.inf) + SEEN_FOR:
            return True
        if not self._cache.touch(name):
            return False
        self._seen[name] = now
        return True

    def _block_bytes(self, found: Sequence[Need]) -> int:
        """Bytes of the blocks of some needs, about: as the shards say, whose samples are alike."""
        total = 0
        for shard_index, start, stop in {(need.shard_index, need.start, need.stop) for need in found}:
            reader, local, _ = self._job.catalogue.locate(shard_index)
            per_sample = int(reader.table.size_bytes[local]) / max(int(reader.table.num_samples[local]), 1)
            total += int(per_sample * (stop - start))
        return total

    def _start(self, slowest: int) -> None:
        """Put requests in flight, as many as there may be."""
        for queued in (self._to_look_up, self._later):
            while queued and self._reading.in_flight < IN_FLIGHT:
                self._reading.look_up(queued.popleft())
        if not self._ready or self._reading.in_flight >= IN_FLIGHT:
            return
        waiting: list[Wanted] = []
        groups = close_together(self._ready)
        groups.sort(key=lambda group: min(self._last_use[wanted.name] for wanted in group))
        for group in groups:
            size = sum(wanted.num_bytes for wanted in group)
            if self._reading.in_flight >= IN_FLIGHT:
                waiting += group
            elif self._has_room(size):
                self._reading.begin(group)
                self._unseen += size
            elif min(self._first_use(wanted.name) for wanted in group) <= slowest + SOON:
                for wanted in group:  # what needs it does not wait for room: it is read without the cache
                    self._settle(wanted.name)
            else:
                waiting += group
        self._ready = waiting

    def _first_use(self, name: str) -> int:
        """The first open micro-batch that waits for an entry."""
        return next((number for number, waits in self._open if name in waits), self._last_use[name])

    def _has_room(self, num_bytes: int) -> bool:
        limit = self._cache.limit_bytes
        spare = limit // 16  # that goes beyond what is asked for: looking at every entry takes its time
        if self._unseen + num_bytes > spare or self._used + self._unseen + num_bytes > limit:
            self._used, self._unseen = self._cache.make_room(num_bytes + spare, self._last_use.keys()), 0
        return self._used + self._unseen + num_bytes <= limit

    def _collect(self) -> None:
        """Take what has come; wait a moment where nothing has."""
        try:
            outcome = self._reading.outcomes.get(timeout=LOOK_EVERY)
            while True:
                if outcome is not None:
                    self._note(outcome)
                outcome = self._reading.outcomes.get_nowait()
        except queue.Empty:
            pass

    def _note(self, outcome: Outcome) -> None:
        wanted, problem = outcome.wanted, outcome.problem
        if isinstance(problem, OSError):
            raise problem
        if problem is not None:
            self._tell(problem)
        if problem is not None or outcome.is_there:
            self._settle(wanted.name)
        else:
            self._ready.append(wanted)

    def _settle(self, name: str) -> None:
        """Nobody waits for this one any more: it is there, or has to be read without the cache."""
        self._at_work.discard(name)
        for _, waits in self._open:
            waits.discard(name)

    def _report(self, slowest: int) -> None:
        while self._open and not self._open[0][1]:
            self._open.popleft()
        if self._open or self._next:
            self._board.put_done(self._open[0][0] if self._open else self._next[0])  # type: ignore[index]
        elif self._num_first is None:
            self._board.put_done(sys.maxsize)
        else:
            self._board.put_done(self._first + self._num_first)
        for name in [name for name, last in self._last_use.items() if last < slowest and name not in self._at_work]:
            del self._last_use[name]
            self._seen.pop(name, None)
        self._board.keep()
        self._board.put_counts(self._before + self._counts_of_stores() - self._of_stores)

    def _counts_of_stores(self) -> FetchCounts:
        stores = self._job.catalogue.remote_stores
        faults = {id(store.faults): store.faults for store in stores}  # tars and index of a dataset may have one count
        return FetchCounts(
            sum(store.num_requests for store in stores),
            sum(store.num_bytes for store in stores),
            self._hits,
            sum((Counter(each) for each in faults.values()), Counter[str]()),
        )

    def _tell(self, problem: Exception) -> None:
        self._told += 1
        if self._told <= MOST_TOLD:
            print(f"fetcher: {problem}; what needs it reads it itself", flush=True)  # noqa: T201


def main() -> None:
    """Do the job that standard input has, pickled by the process that started this one."""
    title_process("t4p-fetcher")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    job = pickle.load(sys.stdin.buffer)
    gc.freeze()
    # What is still in flight is nobody's: threads that wait for storage would hold the exit up.
    status = Fetcher(job).run()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
