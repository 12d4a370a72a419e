"""Calls of the command line one after the other in one process: what is imported is imported once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from forks import run_python

ROOT = Path(__file__).resolve().parents[1]
MARK = "TOLD"  # before the answers: libraries print on the way

CALLS = """
import importlib, io, json, sys
from contextlib import redirect_stderr, redirect_stdout
mark, calls, *modules = sys.argv[1:]
sys.path.insert(0, "tests")
for name in modules:
    importlib.import_module(name)
from commands.main import main
told = []
for arguments in json.loads(calls):
    sys.argv = ["t4p", *arguments]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            told.append((end.code, "torch" in sys.modules, said.getvalue()))
print(mark + json.dumps(told))
"""


class Told(NamedTuple):
    """What came of a call: its exit status, whether torch was loaded by its end, and all that it printed."""

    status: int
    torch_loaded: bool
    output: str


def call_in_turn(calls: Sequence[Sequence[str]], environ: Mapping[str, str], imports: Sequence[str] = ()) -> list[Told]:
    """What `t4p ARGUMENTS` tells, for each of the calls.

    Args:
        imports: modules of tests/ to import first.
    """
    program = [sys.executable, *_program(calls, imports)]
    return _told(subprocess.run(program, cwd=ROOT, env=environ, capture_output=True, text=True))


def call_in_a_fork(calls: Sequence[Sequence[str]], environ: Mapping[str, str]) -> list[Told]:
    """The same in a process that begins with everything imported (tests/forks.py)."""
    return _told(run_python(_program(calls, ()), environ))


def _program(calls: Sequence[Sequence[str]], imports: Sequence[str]) -> list[str]:
    return ["-c", CALLS, MARK, json.dumps([list(call) for call in calls]), *imports]


def _told(done: subprocess.CompletedProcess[str]) -> list[Told]:
    assert done.returncode == 0, done.stderr
    return [Told(*each) for each in json.loads(done.stdout.rpartition(MARK)[2])]
