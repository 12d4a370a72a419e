"""What the fetcher of a node and its ranks tell each other: a small file in shared memory, a word each.

A word is written by one process and read by all; none of them waits for another. Who finds no board, or one on which
nobody has written for a while, goes on without a fetcher.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SILENT_AFTER = 1.0  # seconds without a beat after which nobody waits for the fetcher
_KEEP_EVERY = 600.0  # seconds
_BEAT, _DONE, _REQUESTS, _BYTES, _HITS, _BEATEN, _PROGRESS = 0, 1, 2, 3, 4, 5, 8


@dataclass(frozen=True)
class FetchCounts:
    """What the fetcher of a node has done so far.

    Attributes:
        requests: to storage, those that failed included.
        num_bytes: that came.
        hits: samples that were in the cache when they were first wanted.
        faults: what storage did wrong and was put right by asking again, by cause.
    """

    requests: int = 0
    num_bytes: int = 0
    hits: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: FetchCounts) -> FetchCounts:
        return FetchCounts(
            self.requests + other.requests,
            self.num_bytes + other.num_bytes,
            self.hits + other.hits,
            self.faults + other.faults,
        )

    def __sub__(self, other: FetchCounts) -> FetchCounts:
        return FetchCounts(
            self.requests - other.requests,
            self.num_bytes - other.num_bytes,
            self.hits - other.hits,
            self.faults - other.faults,
        )


class Board:
    """The file of one node and run. Picklable; survives a fork."""

    def __init__(self, path: Path, num_ranks: int) -> None:
        """Nothing is opened yet.

        Args:
            num_ranks: of this node.
        """
        self.path = path
        self.num_ranks = num_ranks
        self._words: NDArray[np.int64] | None = None
        self._kept = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_words": None}

    def create(self, first: int) -> None:
        """Make the file, which all ranks stand at micro-batch `first` of; OSError where that does not go."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        words = np.zeros(_PROGRESS + self.num_ranks, np.int64)
        words[_DONE] = words[_PROGRESS:] = first
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        temporary.write_bytes(words.tobytes())
        temporary.replace(self.path)
        self._words = None

    def keep(self) -> None:
        """Show that the run is going on: boards that nobody kept for a day are swept."""
        if time.monotonic() > self._kept + _KEEP_EVERY:
            self._kept = time.monotonic()
            with suppress(OSError):
                os.utime(self.path)

    def remove(self) -> None:
        """Take it down; who has it open keeps what it last said."""
        self.silence()
        for path in (self.path, self._faults_path):
            path.unlink(missing_ok=True)

    def beat(self, *, is_first: bool = False) -> None:
        """The fetcher is at work; `is_first`: not yet its process, but what goes before it."""
        self._put(_BEAT, time.monotonic_ns())
        if not is_first:
            self._put(_BEATEN, 1)

    def expect(self, seconds: float) -> None:
        """The fetcher begins: it is waited for so long."""
        self._put(_BEAT, time.monotonic_ns() + int(1e9 * (seconds - SILENT_AFTER)))

    def forget(self) -> None:
        """Another fetcher begins: it has not beaten yet."""
        self._put(_BEATEN, 0)

    @property
    def has_beaten(self) -> bool:
        """Whether the fetcher is past its start."""
        return bool(self._get(_BEATEN))

    def silence(self) -> None:
        """It is no more, or not yet."""
        self._put(_BEAT, 0)

    @property
    def silent_for(self) -> float:
        """Seconds since the last beat; a long time without one."""
        return (time.monotonic_ns() - self._get(_BEAT)) / 1e9

    def is_coming(self, micro_batch: int) -> bool:
        """Whether a fetcher is at work on what a micro-batch needs."""
        return self._get(_DONE) <= micro_batch and self.silent_for < SILENT_AFTER

    def put_done(self, micro_batch: int) -> None:
        """Nothing more comes for micro-batches before this one: they have all they need, or have to read it."""
        self._put(_DONE, micro_batch)

    def put_counts(self, counts: FetchCounts) -> None:
        """Say what the fetcher has done; the causes of faults go beside the board."""
        for slot, value in ((_REQUESTS, counts.requests), (_BYTES, counts.num_bytes), (_HITS, counts.hits)):
            self._put(slot, value)
        if counts.faults:
            with suppress(OSError):
                temporary = self._faults_path.with_suffix(f".{os.getpid()}")
                temporary.write_text(json.dumps(counts.faults))
                temporary.replace(self._faults_path)

    def counts(self) -> FetchCounts:
        """What the fetcher has done so far."""
        faults: Counter[str] = Counter()
        with suppress(OSError, ValueError):
            faults.update(json.loads(self._faults_path.read_text()))
        return FetchCounts(self._get(_REQUESTS), self._get(_BYTES), self._get(_HITS), faults)

    def put_progress(self, local_rank: int, micro_batch: int) -> None:
        """A rank wants this micro-batch next."""
        self._put(_PROGRESS + local_rank, micro_batch)

    def slowest(self) -> int:
        """The micro-batch that the slowest rank of the node wants next."""
        words = self._open()
        return 0 if words is None else int(words[_PROGRESS:].min())

    @property
    def _faults_path(self) -> Path:
        return self.path.with_suffix(".faults")

    def _get(self, slot: int) -> int:
        words = self._open()
        return 0 if words is None else int(words[slot])

    def _put(self, slot: int, value: int) -> None:
        words = self._open()
        if words is not None:
            words[slot] = value

    def _open(self) -> NDArray[np.int64] | None:
        if self._words is None:
            with suppress(OSError, ValueError):
                size = _PROGRESS + self.num_ranks
                self._words = np.memmap(self.path, np.int64, mode="r+", shape=(size,))
        return self._words
