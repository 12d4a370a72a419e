"""The wish that the training of this process ends, and the signals that express it.

A process has one training: the wish is kept for the process, as a signal is. Whoever trains looks at it after every
step, agrees with the other ranks, saves and returns (t4p/train/loop.py).

No exception is thrown into a training that is at work: one in the middle of a queue's lock has left that lock locked.
A thread hears of signals as soon as they come, also while the main thread waits for another rank, and ends the process
where it does not end by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import FrameType

from t4p.heartbeat import first_step_is_done

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One wish may come as several signals: from a terminal to the whole group, and from whoever passes its own on.
SAME_WISH = 1.0  # seconds
LAST_WORDS = 2.0  # seconds for them: nobody may be reading

_asked = 0


def ask(signal_number: int) -> None:
    """Wish that the training ends after the next step, with a checkpoint.

    Args:
        signal_number: of the signal that this stands for.
    """
    global _asked
    _asked = signal_number


def asked() -> int:
    """The number of the signal that the wish stands for, 0 without one."""
    return _asked


class Act(Enum):
    """What to do about a signal."""

    SAVE = "save"
    END = "end"
    NOTHING = "nothing"


@dataclass
class Stopping:
    """What becomes of the signals that a process gets. Pure: told of each, and of the time.

    Attributes:
        limit: seconds from the first on that a last checkpoint may take; 0 for no checkpoint.
        first: number of the first signal, 0 before it.
        since: when it came.
    """

    limit: float
    first: int = 0
    since: float = 0.0

    def take(self, number: int, now: float, worth_saving: bool) -> Act:
        """What to do about a signal.

        Args:
            worth_saving: whether there has been a step that a checkpoint could hold.
        """
        if not self.first:
            self.first, self.since = number, now
            return Act.SAVE if self.limit and worth_saving else Act.END
        return Act.NOTHING if now - self.since < SAME_WISH else Act.END

    def seconds_left(self, now: float) -> float | None:
        """Until the process is ended; None before the first signal."""
        return max(0.0, self.since + self.limit - now) if self.first else None


@contextmanager
def ending_on_signals(
    limit: float,
    say: Callable[[str], None],
    last_words: Callable[[int], None],
    end: Callable[[int], None] = os._exit,
) -> Iterator[None]:
    """SIGINT and SIGTERM ask for an end; a second one, or the limit, ends this process at once, its children with it.

    For the main thread of a process that trains and does nothing else. A signal that is ignored stays so.

    Args:
        limit: seconds that a last checkpoint may take; 0 ends at the first signal.
        say: told what is going to happen, in a thread.
        last_words: told the signal's number before the process is ended, in a thread, and not waited for.
        end: how to end this process with a status.
    """
    ask(0)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    thread = threading.Thread(
        target=_listen, args=(reading, Stopping(limit), say, last_words, end), name="t4p-signals", daemon=True
    )
    thread.start()
    numbers = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, _heard_by_the_thread) for number in numbers}
    others = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(others)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.write(writing, b"\0")
        thread.join()
        os.close(reading)
        os.close(writing)


def leave_signals_alone() -> None:
    """In a process that was forked from one in `ending_on_signals`: what it hears is none of the other's business."""
    signal.set_wakeup_fd(-1)


def _heard_by_the_thread(number: int, frame: FrameType | None) -> None:
    """Python writes the number into the pipe of the thread."""


def _listen(
    reading: int,
    stopping: Stopping,
    say: Callable[[str], None],
    last_words: Callable[[int], None],
    end: Callable[[int], None],
) -> None:
    while True:
        ready, _, _ = select.select([reading], [], [], stopping.seconds_left(time.monotonic()))
        heard = os.read(reading, 64) if ready else b""
        if 0 in heard:
            return
        acts = {stopping.take(number, time.monotonic(), first_step_is_done()) for number in heard if number in SIGNALS}
        if Act.END in acts or not ready:
            end_now(partial(last_words, stopping.first), 128 + stopping.first, end)
            return
        if Act.SAVE in acts:
            ask(stopping.first)
            words = (
                f"{signal.Signals(stopping.first).name}: saving after this step, for at most {stopping.limit:g} s "
                "(train.save_on_stop); once more ends at once"
            )
            # Not here: where a terminal is paused or nobody empties a pipe, the next signal would not be heard.
            threading.Thread(target=_say, args=(say, words), daemon=True).start()


def _say(say: Callable[[str], None], words: str) -> None:
    with suppress(OSError):
        say(words)


def end_now(last_words: Callable[[], None], status: int, end: Callable[[int], None] = os._exit) -> None:
    """End this process and its children, whatever else it waits for: a disk that hangs holds nobody.

    Args:
        last_words: said in a thread that is waited for LAST_WORDS seconds; a failure of theirs is printed.
        end: how to end this process.
    """
    speaking = threading.Thread(target=last_words, daemon=True)
    speaking.start()
    speaking.join(LAST_WORDS)
    for child in multiprocessing.active_children():
        child.kill()
    end(status)
