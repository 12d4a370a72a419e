"""Whoever ends the tests of CI from outside knows who had failed."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_who_fails_is_named_before_the_summary(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("def test_one(): pass\ndef test_two(): assert 1 == 2\n")
    command = [sys.executable, "-m", "pytest", "-p", "failures_at_once", "--rootdir", str(tmp_path), str(tmp_path)]
    environ = os.environ | {"CI": "true", "PYTHONPATH": str(TESTS)}
    out = subprocess.run(command, env=environ, cwd=tmp_path, capture_output=True, text=True).stdout
    told, _, _ = out.partition("= FAILURES =")
    assert "1 failed, 1 passed" in out
    assert "test_a.py::test_two: " in told
    assert "assert 1 == 2" in told
