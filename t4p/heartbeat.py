"""Signs of life of this process: whoever works says where it is, so that nobody is taken for hung.

A process has one training, so it has one place at a time: this is kept for the process, as a logger is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FILES_EVERY = 1.0  # seconds between two looks at what files have moved
FEW_BYTES = 64 * 1024  # a log that is written meanwhile is no progress


@dataclass(frozen=True)
class Beat:
    """Where the process last said it was.

    Attributes:
        number: of signs so far.
        place: in words, for a message: "step 12", "validation, frame 3".
    """

    number: int
    place: str


@dataclass
class Standstill:
    """How long nothing has happened. Pure: fed with what is seen at each look.

    Attributes:
        limit: seconds that may pass without news.
        longest: between two looks; what is more is time in which this process stood still itself.
    """

    limit: float
    longest: float
    waited: float = 0.0
    _seen: int = -1

    def is_over(self, news: int, elapsed: float) -> bool:
        """Whether nothing has happened for too long.

        Args:
            news: anything that changes when something happens.
            elapsed: seconds since the last look.
        """
        if news != self._seen:
            self._seen, self.waited = news, 0.0
        else:
            self.waited += min(elapsed, self.longest)
        return self.waited >= self.limit


_last = Beat(0, "the start")
_warm = threading.Event()
_told: list[Callable[[BaseException], None]] = []


def beat(place: str) -> None:
    """Say that something has just been done, and what comes now.

    Args:
        place: what comes now.
    """
    global _last
    _last = Beat(_last.number + 1, place)


def last_beat() -> Beat:
    """The newest sign of life."""
    return _last


def first_step_is_done() -> bool:
    """Whether this process has trained a step: what is compiled on the way has been."""
    return _warm.is_set()


def tell_first_step() -> None:
    """Say so; the first time is a sign of life."""
    if not _warm.is_set():
        beat("after the first step")
        _warm.set()


@contextmanager
def beating_while_files_move(place: str) -> Iterator[None]:
    """Give signs of life as long as this process reads or writes something: one file may take longer than a deadline.

    Args:
        place: what is read or written.
    """
    beat(place)
    done = threading.Event()
    thread = threading.Thread(target=_beat_while_files_move, args=(place, done), name="t4p-files", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        beat(place)


def _beat_while_files_move(place: str, done: threading.Event) -> None:
    before = _bytes_moved()
    while not done.wait(FILES_EVERY):
        now = _bytes_moved()
        if now - before > FEW_BYTES:
            beat(place)
        before = now


def _bytes_moved() -> int:
    """Bytes that this process has read and written so far, caches included; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("rchar", "wchar")))


def at_hang(tell: Callable[[BaseException], None]) -> None:
    """Have a hang told before the process is ended for it: last words, which are waited for a moment at most."""
    _told.append(tell)


def told_at_hang() -> tuple[Callable[[BaseException], None], ...]:
    """Who wants to be told of a hang."""
    return tuple(_told)


def title_process(name: str) -> None:
    """Call this process `name` where processes are listed (`ps -o comm`, `top`, `pgrep -x`); at most 15 bytes.

    Where there is no /proc it keeps its name.
    """
    comm = Path("/proc/self/comm")
    if comm.exists():
        comm.write_text(name[:15])
