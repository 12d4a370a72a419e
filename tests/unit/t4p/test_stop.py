"""What becomes of the signals that ask a training to end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from t4p import stop
from t4p.stop import SAME_WISH, Act, Stopping, ask, asked, ending_on_signals

LIMIT = 60.0


@pytest.mark.parametrize(
    ("limit", "worth_saving", "at", "acts"),
    [
        (LIMIT, True, (0.0,), [Act.SAVE]),
        (LIMIT, False, (0.0,), [Act.END]),
        (0.0, True, (0.0,), [Act.END]),
        (LIMIT, True, (0.0, 0.5 * SAME_WISH, 0.9 * SAME_WISH), [Act.SAVE, Act.NOTHING, Act.NOTHING]),
        (LIMIT, True, (0.0, 0.5 * SAME_WISH, 2 * SAME_WISH), [Act.SAVE, Act.NOTHING, Act.END]),
    ],
)
def test_the_first_signal_saves_what_is_worth_it_and_a_second_ends(
    limit: float, worth_saving: bool, at: tuple[float, ...], acts: list[Act]
) -> None:
    stopping = Stopping(limit)
    assert stopping.seconds_left(100) is None
    assert [stopping.take(signal.SIGINT, 100 + when, worth_saving) for when in at] == acts
    assert (stopping.first, stopping.since) == (signal.SIGINT, 100)
    assert [stopping.seconds_left(now) for now in (100, 110, 1000)] == [limit, max(0, limit - 10), 0]


class Heard:
    """What was said and done on the way."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.last_words: list[int] = []
        self.statuses: list[int] = []
        self.ended = threading.Event()

    def end(self, status: int) -> None:
        self.statuses.append(status)
        self.ended.set()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    monkeypatch.setattr(stop, "first_step_is_done", lambda: True)
    monkeypatch.setattr(stop, "SAME_WISH", 0.05)
    ask(0)
    return Heard()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_wish_and_no_exception_and_a_second_one_ends(heard: Heard, number: int) -> None:
    before = [signal.getsignal(each) for each in stop.SIGNALS]
    with ending_on_signals(LIMIT, heard.said.append, heard.last_words.append, heard.end):
        os.kill(os.getpid(), number)
        wait_for(lambda: heard.said)
        assert asked() == number
        assert heard.statuses == []
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.ended.wait(20)
    assert (heard.last_words, heard.statuses) == ([number], [128 + number])
    (said,) = heard.said
    assert said.startswith(
        f"{signal.Signals(number).name}: saving after this step, for at most 60 s (train.save_on_stop)"
    )
    assert [signal.getsignal(each) for each in stop.SIGNALS] == before
    ask(0)


def test_the_limit_ends_whatever_the_main_thread_waits_for(heard: Heard) -> None:
    with ending_on_signals(0.2, heard.said.append, lambda number: time.sleep(100), heard.end):
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.ended.wait(20), "also where nobody hears the last words"
    assert heard.statuses == [130]
    ask(0)


def test_a_second_signal_ends_also_where_nobody_reads_what_is_said(heard: Heard) -> None:
    with ending_on_signals(LIMIT, lambda words: time.sleep(100), heard.last_words.append, heard.end):
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(asked)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
        assert heard.ended.wait(20)
    assert heard.statuses == [130]
    ask(0)


def test_before_the_first_step_there_is_nothing_to_wait_for(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "first_step_is_done", lambda: False)
    with ending_on_signals(LIMIT, heard.said.append, heard.last_words.append, heard.end):
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.ended.wait(20)
    assert (heard.said, heard.last_words, heard.statuses, asked()) == ([], [signal.SIGTERM], [143], 0)


def test_nothing_happens_without_a_signal_and_what_is_ignored_stays_so(heard: Heard) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with ending_on_signals(LIMIT, heard.said.append, heard.last_words.append, heard.end):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        assert (heard.said, heard.statuses, asked()) == ([], [], 0)
    finally:
        signal.signal(signal.SIGINT, before)
