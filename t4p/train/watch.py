"""A thread that ends this rank when no rank does anything any more: a stopped process, a dead disk, a lost collective.

A rank that waits for the others is healthy as long as one of them works. So the ranks add up their signs of life
(t4p/heartbeat.py) in a store of torch.distributed, and each looks at the sum. It has a server of its own: the process
group's store serves one caller at a time, and that one may wait for a rank that is gone.

Seconds are counted in looks of this thread, so a process that was stopped or a laptop that slept has lost none.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType

import torch.distributed as dist

from t4p.distributed import broadcast_object, rank, world_size
from t4p.errors import HungError
from t4p.heartbeat import Beat, Standstill, first_step_is_done, last_beat, told_at_hang
from t4p.stop import end_now
from t4p.train.loopback import LOOPBACK, loopback_store

# The first step compiles kernels, in one go and without a sign of life.
FIRST_STEP_FACTOR = 6
# A collective may wait as long as any rank does something. The limit of torch's own is for what this watch cannot see.
COLLECTIVE_FACTOR = 150
# Of the deadline, how often to look; and at most so many seconds apart.
LOOKS = 40
LOOK_AT_MOST = 10.0
CALL, HERE = "call", "here"  # keys of the roll


def collective_timeout(step_timeout: float) -> timedelta:
    """What torch.distributed may wait: longer than this watch, which says more."""
    return timedelta(seconds=COLLECTIVE_FACTOR * step_timeout)


class Watch:
    """The thread. It begins with this process alone, and looks at all ranks once they have found each other."""

    def __init__(self, step_timeout: float, end: Callable[[int], None] = os._exit) -> None:
        """
        Args:
            step_timeout: seconds without a sign of life of any rank.
            end: how to end this process.
        """
        self._timeout = step_timeout
        self._look_every = min(step_timeout / LOOKS, LOOK_AT_MOST)
        self._end = end
        self._stopped = threading.Event()
        self._roll: _Roll | None = None
        self._thread = threading.Thread(target=self._watch, name="t4p-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join_ranks(self) -> None:
        """From now on a sign of life of any rank counts for all. Collective."""
        if world_size() > 1:
            self._roll = _Roll(self._look_every)

    def stop(self) -> None:
        """Look no longer."""
        self._stopped.set()
        if self._roll is not None:
            self._roll.stop()

    def _watch(self) -> None:
        standstill = Standstill(self._timeout * FIRST_STEP_FACTOR, longest=2 * self._look_every)
        looked = time.monotonic()
        while not self._stopped.wait(self._look_every):
            now = time.monotonic()
            if first_step_is_done():
                standstill.limit = self._timeout
            beat, roll = last_beat(), self._roll
            if standstill.is_over(beat.number + (roll.total if roll else 0), now - looked):
                self._say_and_end(beat, standstill.waited, roll)
                return
            looked = now

    def _say_and_end(self, beat: Beat, waited: float, roll: _Roll | None) -> None:
        silent = roll.call() if roll else ()
        if self._stopped.is_set():
            return
        error = HungError(describe_hang(beat.place, waited, silent))
        where = stacks()
        error.add_note(where)

        def tell_all() -> None:
            try:
                for tell in told_at_hang():
                    tell(error)
            finally:
                print(f"rank {rank()}: {error}\n{where}", file=sys.stderr, flush=True)  # noqa: T201

        end_now(tell_all, HungError.exit_status, self._end)


class _Roll:
    """The signs of life of all ranks, added up by a thread that may itself have to wait for rank 0.

    Attributes:
        total: of all ranks, as far as is known.
    """

    def __init__(self, every: float) -> None:
        """Collective.

        Args:
            every: seconds between two looks.
        """
        self.total = 0
        self._every = every
        self._stopped = threading.Event()
        if rank() == 0:
            self._store = _open_store(0)
            broadcast_object(self._store.port)
        else:
            self._store = _open_store(broadcast_object(0))
        threading.Thread(target=self._keep, name="t4p-roll", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def call(self) -> tuple[int, ...]:
        """The ranks whose thread does not answer, though it has nothing to wait for."""
        silent: list[int] = []
        caller = threading.Thread(target=self._call, args=(silent,), daemon=True)
        caller.start()
        caller.join(timeout=4 * self._every)
        # Who keeps the store is the one that is silent where nobody can be called.
        return (0,) if caller.is_alive() else tuple(silent)

    def _call(self, silent: list[int]) -> None:
        with suppress(RuntimeError):  # rank 0 has ended, and its store with it: nothing is known
            self._store.set(CALL, "")
            time.sleep(3 * self._every)
            silent.extend(other for other in range(world_size()) if not self._store.check([f"{HERE}/{other}"]))

    def _keep(self) -> None:
        told, here = 0, False
        while not self._stopped.wait(self._every):
            own = last_beat().number
            try:
                self.total = self._store.add("signs of life", own - told)
                if not here and self._store.check([CALL]):
                    self._store.set(f"{HERE}/{rank()}", "")
                    here = True
            except RuntimeError:  # rank 0 has ended: from now on every rank counts its own
                return
            told = own


def _open_store(port: int) -> dist.TCPStore:
    """A store on rank 0's node, at any port for rank 0 itself; where all ranks are on one machine, on loopback."""
    host, patience = os.environ["MASTER_ADDR"], timedelta(seconds=60)
    if host == LOOPBACK:
        return loopback_store(rank(), world_size(), port, patience)
    return dist.TCPStore(host, port, None, is_master=rank() == 0, wait_for_workers=False, timeout=patience)


_current: Watch | None = None


@contextmanager
def watching(step_timeout: float) -> Iterator[None]:
    """Watch this process while it works; for processes that are a rank and nothing else.

    Args:
        step_timeout: train.step_timeout.
    """
    global _current
    _current = watch = Watch(step_timeout)
    watch.start()
    try:
        yield
    finally:
        watch.stop()
        _current = None


def ranks_have_met() -> None:
    """From now on a sign of life of any rank counts for all. Collective; nothing where nobody watches."""
    if _current is not None:
        _current.join_ranks()


def describe_hang(place: str, seconds: float, silent: Sequence[int]) -> str:
    """What a rank says that ends because nothing happens; the first line is what happened.

    Args:
        place: where it waits itself.
        silent: ranks that give no sign at all.
    """
    said = f"hung at {place}: no rank got on for {seconds:.0f} s (train.step_timeout)"
    if silent:
        gone = ("ranks " if len(silent) > 1 else "rank ") + ", ".join(map(str, silent))
        verb = "give" if len(silent) > 1 else "gives"
        said += f"; {gone} {verb} no sign of life: stopped, or its machine hangs, or its network is gone"
    return (
        f"{said}\nthe same command goes on from the newest checkpoint, if there is one; if it was at work, raise "
        "train.step_timeout"
    )


def stacks() -> str:
    """What every thread of this process is doing, the main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    return "".join(
        f"---- thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in _main_first(sys._current_frames().items())
        if ident != own
    )


def _main_first(frames: Iterable[tuple[int, FrameType]]) -> list[tuple[int, FrameType]]:
    return sorted(frames, key=lambda item: item[0] != threading.main_thread().ident)
