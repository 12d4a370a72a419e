from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.processes.caretaker import CARETAKER, end_processes, processes_of

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_for_output(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.read_bytes():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_processes_are_known_by_command_line_environment_or_output(
    tmp_path: Path, started: list[subprocess.Popen]
) -> None:
    folder, elsewhere = tmp_path / "t4p-one", tmp_path / "t4p-two"
    folder.mkdir()
    elsewhere.mkdir()
    own_log = folder / "log"
    with own_log.open("wb") as log:
        marked = [
            subprocess.Popen([sys.executable, "-c", SLEEP, f"--log={folder}/x"], stdout=subprocess.DEVNULL),
            subprocess.Popen(
                [sys.executable, "-c", SLEEP], stdout=subprocess.DEVNULL, env=os.environ | {"TOKEN": f"{folder}/token"}
            ),
            subprocess.Popen([sys.executable, "-c", SLEEP], stdout=log),
        ]
    other = subprocess.Popen([sys.executable, "-c", SLEEP, str(elsewhere)], stdout=subprocess.DEVNULL)
    started += [*marked, other]
    wait_for_output(own_log)

    assert {process.pid for process in processes_of(folder)} == {process.pid for process in marked}
    end_processes(folder)
    assert [process.poll() is None for process in marked] == [False] * 3
    assert other.poll() is None
    assert processes_of(folder) == []


def test_what_ignores_sigterm_is_killed(tmp_path: Path, started: list[subprocess.Popen]) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        stubborn = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=output)
    started.append(stubborn)
    wait_for_output(log)
    end_processes(tmp_path, patience=0.5)
    assert stubborn.poll() is not None
    assert processes_of(tmp_path) == []


def test_the_caretaker_ends_everything_when_the_command_is_gone_and_not_before(
    tmp_path: Path, started: list[subprocess.Popen]
) -> None:
    folder = tmp_path / "t4p-one"
    folder.mkdir()
    caretaker = subprocess.Popen([*CARETAKER, str(folder)], stdin=subprocess.PIPE)
    first, second = (folder / name for name in ("first", "second"))
    started.append(caretaker)

    def start(log: Path) -> subprocess.Popen:
        with log.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=output)
        started.append(process)
        wait_for_output(log)
        return process

    ended_here = start(first)
    end_processes(folder)
    assert ended_here.poll() is not None
    assert caretaker.poll() is None, "a command that is killed while it cleans up still has its caretaker"

    left_behind = start(second)
    assert caretaker.stdin is not None
    caretaker.stdin.close()  # as the death of the command would
    assert left_behind.wait(timeout=60) != 0
    assert caretaker.wait(timeout=60) == 0
    assert not folder.exists()
