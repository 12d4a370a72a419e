"""Tests that begin too late are left out, and say so; who fails is named at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

from deadline import VARIABLE, deadline_of

TESTS = Path(__file__).resolve().parents[1]


def run(folder: Path, deadline: float) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "deadline", "-rs", "--rootdir", str(folder), str(folder)]
    environ = os.environ | {VARIABLE: str(deadline), "CI": "true", "PYTHONPATH": str(TESTS)}
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True).stdout


def test_a_file_that_has_begun_is_done_to_its_end_and_the_next_one_is_left_out(tmp_path: Path) -> None:
    end = time.time() + 6
    (tmp_path / "test_a.py").write_text(
        f"import time\ndef test_one(): time.sleep(max(0, {end + 0.1} - time.time()))\ndef test_two(): assert 1 == 2\n"
    )
    (tmp_path / "test_b.py").write_text("def test_three(): pass\n")
    out = run(tmp_path, end)
    assert "1 failed, 1 passed, 1 skipped" in out
    assert "this machine is too slow to do everything in time" in out
    told, _, _ = out.partition("= FAILURES =")
    assert "test_a.py::test_two: " in told
    assert "assert 1 == 2" in told


def test_without_a_deadline_nothing_is_left_out() -> None:
    assert deadline_of({}) is deadline_of({VARIABLE: ""}) is None
    assert deadline_of({VARIABLE: "12.5"}) == 12.5
