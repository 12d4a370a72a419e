"""What stops a command of shards reaches it, also where Python throws away what the signal raised."""

from __future__ import annotations

import os
import signal

import pytest
import typer

from commands.stops import user_errors


class Loud:
    """Gets a signal while it is deleted, as tarfile's streams do now and then."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self._number)
        for _ in range(1000):  # Python runs handlers between two instructions
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_came_in_a_destructor_stops_at_the_next_sign_of_progress(
    number: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[int] = []

    def command() -> None:
        with user_errors("stopped; it resumes") as stops:
            on_progress = stops.heard_at(lambda done, total: told.append(done))
            on_progress(1, 3)
            loud = Loud(number)
            del loud  # what the signal raises in here is thrown away
            told.append(100)
            on_progress(2, 3)

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == status
    assert told == [1, 100]
    assert capsys.readouterr().err == "stopped; it resumes\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_interrupt_stays_ignored() -> None:
    """As behind the `&` of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with user_errors():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
