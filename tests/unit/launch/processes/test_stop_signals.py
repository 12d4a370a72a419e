"""Signals to a command that waits: passed on once, where somebody can end by himself."""

from __future__ import annotations

import os
import signal

import pytest

from launch.processes import stop_signals
from launch.processes.stop_signals import Stopped, StopSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_first_is_passed_on_and_the_second_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignals() as stops, stops.passed_on(lambda: True):
        send(signal.SIGINT)
        assert stops.asked == signal.SIGINT
        send(signal.SIGTERM)  # as a terminal and a parent do, at once
        stops.raise_when_over(60)
        with pytest.raises(Stopped) as over:
            stops.raise_when_over(0)
        monkeypatch.setattr(stop_signals, "SAME_WISH", 0.0)
        with pytest.raises(Stopped) as again:
            send(signal.SIGTERM)
    assert [caught.value.signal_number for caught in (over, again)] == [signal.SIGINT, signal.SIGINT]


def test_what_nobody_hears_stops_at_once() -> None:
    with StopSignals() as stops:
        with stops.passed_on(lambda: False), pytest.raises(Stopped):
            send(signal.SIGTERM)
        with pytest.raises(Stopped):
            send(signal.SIGTERM)
        stops.raise_when_over(0)
        with stops.held():
            send(signal.SIGTERM)
        with pytest.raises(Stopped):
            stops.raise_waiting()
