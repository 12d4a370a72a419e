"""What asks a command to end: told to the code that waits, and kept from it while it cleans up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The user or the system asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


class StopSignals:
    """Turns the signals that ask the command to end into Stopped; those that come while held wait."""

    def __init__(self) -> None:
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

    def raise_waiting(self) -> None:
        """Stop now if a signal came while they were held."""
        if self._waiting is not None:
            raise Stopped(self._waiting)

    def _take(self, signal_number: int, frame: FrameType | None) -> None:
        if not self._held:
            raise Stopped(signal_number)
        self._waiting = signal_number
