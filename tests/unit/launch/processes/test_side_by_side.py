from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from live_processes import is_running

from launch.errors import LaunchError
from launch.processes.side_by_side import OWNER, Command, run_side_by_side

# Each waits for the file of the other: one after the other they would never end.
MEET = """
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
end = time.monotonic() + 60
while not other.exists():
    assert time.monotonic() < end, "alone"
    time.sleep(0.02)
"""
SLEEP = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
FAIL = """
import pathlib, sys, time
path = pathlib.Path(sys.argv[1])
while not path.exists() or not path.stat().st_size:
    time.sleep(0.02)
sys.exit("no such thing")
"""
PARENT = """
import pathlib, sys
from launch.processes.side_by_side import Command, run_side_by_side
run_side_by_side({"long": Command(sys.argv[2:], pathlib.Path(sys.argv[1]))}, lambda: None)
"""


def python(script: str, *arguments: Path) -> list[str]:
    return [sys.executable, "-c", script, *map(str, arguments)]


def logged(tmp_path: Path, script: str, *arguments: Path) -> Command:
    return Command(python(script, *arguments), tmp_path / "logs" / "log")


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_both_run_at_once(tmp_path: Path) -> None:
    ticks = []
    one, two = tmp_path / "one", tmp_path / "two"
    commands = {"one": logged(tmp_path, MEET, one, two), "two": logged(tmp_path, MEET, two, one)}
    run_side_by_side(commands, lambda: ticks.append(1))
    assert ticks


def test_the_failure_of_one_is_said_and_ends_the_other(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    commands = {"the first": logged(tmp_path, SLEEP, pid_file), "the second": logged(tmp_path, FAIL, pid_file)}
    with pytest.raises(LaunchError, match=r"(?s)the second ended with status 1; .* in .*logs/log:.no such thing"):
        run_side_by_side(commands, lambda: None)
    assert (tmp_path / "logs" / "log").read_text() == "no such thing\n"
    wait_until(lambda: not is_running(int(pid_file.read_text())))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_caller_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    with (tmp_path / "said").open("wb") as said:
        parent = subprocess.Popen([*python(PARENT, tmp_path / "log"), *python(SLEEP, pid_file)], stderr=said)
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    child = int(pid_file.read_text())
    folder = Path(psutil.Process(child).environ()[OWNER])
    try:
        os.kill(parent.pid, number)
        assert parent.wait(timeout=60) != 0
        wait_until(lambda: not is_running(child) and not folder.exists())
        assert ("Stopped" in (tmp_path / "said").read_text()) == (number != signal.SIGKILL)
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def test_a_process_of_one_is_no_rank_of_another_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    found = tmp_path / "found"
    script = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ.get('RANK', 'none'))"
    run_side_by_side({"one": logged(tmp_path, script, found)}, lambda: None)
    assert found.read_text() == "none"
