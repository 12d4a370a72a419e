from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.side_by_side import run_side_by_side

# Each waits for the file of the other: one after the other they would never end.
MEET = """
import pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.touch()
while not other.exists():
    time.sleep(0.02)
"""
SLEEP = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
FAIL = """
import pathlib, sys, time
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
sys.exit("no such thing")
"""
PARENT = """
import sys
from launch.side_by_side import run_side_by_side
run_side_by_side({"long": sys.argv[1:]}, lambda: None)
"""


def python(script: str, *arguments: Path) -> list[str]:
    return [sys.executable, "-c", script, *map(str, arguments)]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_both_run_at_once(tmp_path: Path) -> None:
    ticks = []
    one, two = tmp_path / "one", tmp_path / "two"
    run_side_by_side({"one": python(MEET, one, two), "two": python(MEET, two, one)}, lambda: ticks.append(1))
    assert ticks


def test_the_failure_of_one_is_said_and_ends_the_other(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(LaunchError, match=r"(?s)the second: ended with status 1; its last lines:.no such thing"):
        run_side_by_side({"the first": python(SLEEP, pid_file), "the second": python(FAIL, pid_file)}, lambda: None)
    wait_until(lambda: not is_running(int(pid_file.read_text())))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_caller_that_is_killed(tmp_path: Path, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    parent = subprocess.Popen([*python(PARENT), *python(SLEEP, pid_file)], start_new_session=True)
    wait_until(lambda: pid_file.exists() and pid_file.read_text())
    os.kill(parent.pid, number)
    parent.wait(timeout=60)
    wait_until(lambda: not is_running(int(pid_file.read_text())))


def test_a_process_of_one_is_no_rank_of_another_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    found = tmp_path / "found"
    script = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ.get('RANK', 'none'))"
    run_side_by_side({"one": python(script, found)}, lambda: None)
    assert found.read_text() == "none"
