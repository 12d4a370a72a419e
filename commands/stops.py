"""What a user can cause, as one message and an exit status; and the two signals that end a command in good order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from shards.errors import CallError, ShardError


class _Terminated(BaseException):
    """SIGTERM, turned into an exception so that everything on the stack cleans up."""


class Stops:
    """SIGINT and SIGTERM as exceptions, of which none is lost.

    Python throws away what is raised while an object is deleted, and tarfile deletes a stream for every shard: so a
    signal is raised once more at the next sign of progress.
    """

    def __init__(self) -> None:
        self._heard: BaseException | None = None

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        self._heard = KeyboardInterrupt() if number == signal.SIGINT else _Terminated()
        raise self._heard

    def heard_at(self, on_progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """A sign of progress that also raises what was thrown away."""

        def tell(done: int, total: int) -> None:
            if self._heard is not None:
                raise self._heard
            on_progress(done, total)

        return tell


@contextmanager
def user_errors(when_stopped: str = "stopped") -> Iterator[Stops]:
    """Turn what a user can cause into one message on stderr and an exit status."""
    stops, before = Stops(), {}
    if threading.current_thread() is threading.main_thread():
        heard = [signal.SIGTERM]
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # where it is ignored it stays so
            heard.append(signal.SIGINT)
        before = {number: signal.signal(number, stops.hear) for number in heard}
    try:
        yield stops
    except ShardError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, CallError) else 1) from None
    except (KeyboardInterrupt, _Terminated) as stop:
        typer.echo(when_stopped, err=True)
        raise typer.Exit(130 if isinstance(stop, KeyboardInterrupt) else 143) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
