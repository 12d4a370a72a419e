"""The fetcher of a node, kept alive: started, watched, and started again by the first rank of the node.

A process takes its time to start. Meanwhile a thread here reads what the first micro-batches need, over the connections
that are there already.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType

from t4p.data.board import Board
from t4p.data.fetcher import CACHE_IS_FULL, SOON, Fetcher, FetchJob

LOOK_EVERY = 0.2  # seconds
HUNG_AFTER = 5.0  # seconds without a beat
BEGINS_WITHIN = 30.0  # seconds; a busy machine takes some to start a process
ENDS_WITHIN = 5.0  # seconds; what a request waits for is nobody's any more
WAITED_FOR = 3.0  # seconds that loaders wait for it at the start, once what they need first is there
MOST_LOST, WITHIN = 5, 60.0  # as often in so many seconds something is wrong that another process does not mend


class FetcherProcess:
    """Around the training of a node: inside, its fetcher is at work."""

    def __init__(self, job: FetchJob) -> None:
        """Nothing is started yet."""
        self._job = job
        self._board: Board = job.board
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._lost: deque[float] = deque(maxlen=MOST_LOST)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._attend, name="t4p-fetcher", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> FetcherProcess:
        self._board.create(self._job.needs.first)
        self._board.beat(is_first=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._board.remove()  # which ends the thread, too
        self._thread.join(timeout=ENDS_WITHIN)
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _attend(self) -> None:
        self._start()
        if Fetcher(self._job, num_first=SOON).run() == CACHE_IS_FULL:
            return
        if not self._closed.is_set() and not self._board.has_beaten:
            self._board.expect(WAITED_FOR)
        while not self._closed.wait(LOOK_EVERY):
            process = self._process
            assert process is not None
            status = process.poll()
            if status in (0, CACHE_IS_FULL):
                self._board.silence()  # by itself, it would look like one that hangs until it is gone
                return
            now = time.monotonic()
            if status is None:
                limit = HUNG_AFTER if self._board.has_beaten else BEGINS_WITHIN
                if now - self._started > limit and self._board.silent_for > limit:
                    process.kill()
                    process.wait()
                    self._replace(f"did nothing for {limit:.0f} s")
            else:
                self._replace(f"was ended by signal {-status}" if status < 0 else f"ended with status {status}")

    def _replace(self, what: str) -> None:
        assert self._process is not None
        self._lost.append(time.monotonic())
        words = f"fetcher process {self._process.pid} {what}"
        if len(self._lost) == MOST_LOST and self._lost[-1] - self._lost[0] < WITHIN:
            print(f"{words}, for the {MOST_LOST}th time: samples are read one by one from here on", flush=True)  # noqa: T201
            self._closed.set()
            return
        print(f"{words}; another one takes its place", flush=True)  # noqa: T201
        self._start()

    def _start(self) -> None:
        self._board.forget()
        self._started = time.monotonic()
        # In a group of its own: Ctrl-C is for the training, which ends it.
        process = subprocess.Popen([sys.executable, "-m", "t4p.data.fetcher"], stdin=subprocess.PIPE, process_group=0)
        self._process = process
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pickle.dump(self._job, pipe)
