"""Forks behave as processes that are started anew (tests/forks.py)."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from forks import forks, run_python

pytestmark = pytest.mark.usefixtures("forked_python")


def test_a_fork_has_its_own_arguments_environment_output_and_status() -> None:
    program = "import os, sys; print(sys.argv[1:], os.environ['WORD']); print('oops', file=sys.stderr); sys.exit(3)"
    done = run_python(["-c", program, "a", "b c"], os.environ | {"WORD": "here"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "['a', 'b c'] here\n", "oops\n")
    assert "WORD" not in os.environ


def test_what_one_fork_does_to_a_module_no_other_sees() -> None:
    looks = "import t4p.train.engine as e; print(e.BUCKET_SIZE); e.BUCKET_SIZE = 1"
    first, second = (run_python(["-c", looks]).stdout for _ in range(2))
    assert first == second


def test_an_exception_is_status_1_with_its_traceback() -> None:
    done = run_python(["-c", "raise ValueError('no')"])
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: no\n")


def test_a_killed_fork_says_so_and_takes_along_what_it_started(tmp_path: Path) -> None:
    program = "import subprocess as s, time; print(s.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    process = forks().start(["-c", program], tmp_path / "out")
    while not (tmp_path / "out").exists() or not (tmp_path / "out").read_text().endswith("\n"):
        assert process.poll() is None
    child = int((tmp_path / "out").read_text())
    assert os.getpgid(child) == process.pid
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
