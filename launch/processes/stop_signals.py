"""What asks a command to end: told to the code that waits, and kept from it while it cleans up."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from t4p.stop import SAME_WISH

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The user or the system asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopSignals:
    """Turns the signals that ask the command to end into Stopped; those that come while held wait.

    Attributes:
        asked: number of the signal that was passed on to whoever can end by itself; None without one.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._asked_at = 0.0
        self._pass_on: Callable[[], bool] | None = None
        self._held = False
        self._waiting: int | None = None

    def __enter__(self) -> Self:
        # What is ignored stays ignored: SIGHUP under nohup, SIGINT behind the `&` of a script.
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._take) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the seconds in which processes are ended: a second Ctrl-C must not leave half of them behind."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    @contextmanager
    def passed_on(self, pass_on: Callable[[], bool]) -> Iterator[None]:
        """The first signal is passed on instead; a second one is Stopped.

        Args:
            pass_on: says whether anybody heard it; if not, it is Stopped at once.
        """
        self._pass_on = pass_on
        try:
            yield
        finally:
            self._pass_on = None

    def raise_when_over(self, patience: float) -> None:
        """Stop if a signal was passed on so many seconds ago, and this process still waits."""
        if self.asked is not None and time.monotonic() >= self._asked_at + patience:
            raise Stopped(self.asked)

    def raise_waiting(self) -> None:
        """Stop now if a signal came while they were held."""
        if self._waiting is not None:
            raise Stopped(self._waiting)

    def _take(self, signal_number: int, frame: FrameType | None) -> None:
        if self._held:
            self._waiting = signal_number
        elif self.asked is not None:
            if time.monotonic() >= self._asked_at + SAME_WISH:
                raise Stopped(self.asked)
        elif self._pass_on is not None and self._pass_on():
            self.asked, self._asked_at = signal_number, time.monotonic()
        else:
            raise Stopped(signal_number)
