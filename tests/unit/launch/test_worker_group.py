from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from launch.worker_group import (
    JobOutcome,
    WorkerFailure,
    WorkerJob,
    order_by_cause,
    read_failures,
    read_job,
    read_outcome,
    write_job,
    write_outcome,
)

# A module of the test's own: run_rank imports the function by name, on a process whose streams it takes over.
MODULE = """
import sys


def count(config, report):
    for step in range(1, config["steps"] + 1):
        report(step, config["steps"], {"step": step})


def fail(config, report):
    print("some output")
    print("some more", file=sys.stderr)
    raise FloatingPointError("step 7: the loss is nan")
"""

RUN_RANK = """
import json, sys
from pathlib import Path
from launch.worker_group import WorkerJob, run_rank
folder = Path(sys.argv[1])
reported = []
try:
    run_rank(WorkerJob(sys.argv[2], {"steps": 250}, 1), folder, reported.append)
finally:
    (folder / "reported.json").write_text(json.dumps(reported))
"""


def failure(rank: int, error_type: str, message: str, time: float) -> WorkerFailure:
    return WorkerFailure(rank, error_type, message, "", time)


def run_rank_alone(folder: Path, function: str) -> subprocess.CompletedProcess:
    (folder / "rank_functions.py").write_text(MODULE)
    root = Path(__file__).resolve().parents[3]
    environment = {"RANK": "3", "PYTHONPATH": f"{folder}:{root}", "PATH": ""}
    arguments = [sys.executable, "-c", RUN_RANK, str(folder), f"rank_functions:{function}"]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)


def test_ray_hears_of_every_hundredth_step_and_the_last(tmp_path: Path) -> None:
    assert run_rank_alone(tmp_path, "count").returncode == 0
    assert json.loads((tmp_path / "reported.json").read_text()) == [{"step": 100}, {"step": 200}, {"step": 250}]


def test_a_failing_rank_leaves_its_cause_and_its_output(tmp_path: Path) -> None:
    run = run_rank_alone(tmp_path, "fail")
    assert run.returncode == 1
    (left,) = read_failures(tmp_path)
    assert (left.rank, left.error_type, left.message) == (3, "builtins.FloatingPointError", "step 7: the loss is nan")
    assert "in fail" in left.traceback
    log = (tmp_path / "rank-3.log").read_text()
    assert "some output" in log
    assert "some more" in log
    assert run.stdout == ""


def test_a_job_and_its_outcome_survive_the_way_through_files(tmp_path: Path) -> None:
    job = WorkerJob("module:function", {"list": [1, 2.5, None], "nested": {"text": "ä"}}, 3)
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job
    assert read_outcome(tmp_path) is None
    outcome = JobOutcome((failure(1, "builtins.ValueError", "boom\nmore", 2.5),), "problem", "traceback")
    write_outcome(tmp_path, outcome)
    assert read_outcome(tmp_path) == outcome


def test_the_likely_cause_comes_first() -> None:
    closed = "[pair.cc:561] Connection closed by peer [127.0.0.1]:2453"
    broken_peer = failure(0, "builtins.RuntimeError", closed, 1.0)
    lost = failure(2, "", "The actor died unexpectedly", 3.0)
    raised = failure(1, "builtins.ValueError", "boom", 4.0)
    raised_later = failure(3, "builtins.ValueError", "boom too", 5.0)
    assert order_by_cause([broken_peer, lost]) == (lost, broken_peer)
    assert order_by_cause([broken_peer, lost, raised_later, raised]) == (raised, raised_later, lost, broken_peer)
