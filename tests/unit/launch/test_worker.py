from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.outcome import read_failures
from launch.worker import (
    Attempt,
    WorkerJob,
    check_shared,
    read_attempt,
    require_working_directory,
    write_attempt,
)

# A module of the test's own: run_rank imports the function by name, on a process whose streams it takes over.
MODULE = """
import sys


def count(config, report):
    for step in range(1, config["steps"] + 1):
        report(step, config["steps"], {"step": step})


def stop(config, report):
    import time
    from pathlib import Path
    from t4p.stop import asked
    report(1, 9, {})
    (Path(config["notes"]) / "stop").touch()
    report(2, 9, {})
    looked_too_soon = asked()
    time.sleep(1.05)
    report(3, 9, {})
    print("asked", looked_too_soon, asked())


def fail(config, report):
    print("some output")
    print("some more", file=sys.stderr)
    raise FloatingPointError("step 7: the loss is nan")
"""

RUN_RANK = """
import json, sys
from pathlib import Path
from launch.worker import WorkerJob, run_rank
folder = Path(sys.argv[1])
reported = []
try:
    config = {"steps": 250, "notes": sys.argv[3]}
    run_rank(WorkerJob(sys.argv[2], config, 1), Path(sys.argv[3]), reported.append)
finally:
    (folder / "reported.json").write_text(json.dumps(reported))
"""


def run_rank_alone(
    folder: Path, function: str, notes: Path | None = None, rank: int = 3
) -> subprocess.CompletedProcess:
    (folder / "rank_functions.py").write_text(MODULE)
    root = Path(__file__).resolve().parents[3]
    environment = {"RANK": str(rank), "PYTHONPATH": f"{folder}:{root}", "PATH": ""}
    arguments = [sys.executable, "-c", RUN_RANK, str(folder), f"rank_functions:{function}", str(notes or folder)]
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)


def test_ray_hears_of_every_hundredth_step_and_the_last(tmp_path: Path) -> None:
    assert run_rank_alone(tmp_path, "count").returncode == 0
    assert json.loads((tmp_path / "reported.json").read_text()) == [{"step": 100}, {"step": 200}, {"step": 250}]


@pytest.mark.parametrize(("rank", "asked"), [(0, "asked 0 15"), (3, "asked 0 0")])
def test_rank_0_looks_once_a_second_whether_the_command_wants_an_end(tmp_path: Path, rank: int, asked: str) -> None:
    assert run_rank_alone(tmp_path, "stop", rank=rank).returncode == 0
    assert (tmp_path / f"rank-{rank}.log").read_text().strip() == asked


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


def test_a_rank_that_cannot_write_its_notes_still_raises_its_own_error(tmp_path: Path) -> None:
    """A node that does not share the run folder: Ray passes the exception on."""
    run = run_rank_alone(tmp_path, "fail", notes=tmp_path / "not-shared")
    assert run.returncode == 1
    assert "not-shared/rank-3.log: cannot be written from here" in run.stderr
    assert "FloatingPointError: step 7: the loss is nan" in run.stderr
    assert not (tmp_path / "not-shared").exists()


@pytest.mark.parametrize("address", [None, "auto"])
def test_an_attempt_survives_the_way_through_a_file(tmp_path: Path, address: str | None) -> None:
    job = WorkerJob("module:function", {"list": [1, 2.5, None], "nested": {"text": "ä"}}, 3, 2, 1)
    attempt = Attempt(job, 2, address, tmp_path / "notes")
    write_attempt(tmp_path, attempt)
    assert read_attempt(tmp_path) == attempt


def test_a_node_that_does_not_see_what_the_head_made_says_so(tmp_path: Path) -> None:
    check_shared(tmp_path)
    wanted = (
        rf"run\.dir: this node \(.+\) does not see {tmp_path}/notes, which the head made; set it to a folder that all"
    )
    with pytest.raises(LaunchError, match=wanted):
        check_shared(tmp_path / "notes", patience=0.1)


def test_a_folder_that_shows_up_late_is_waited_for(tmp_path: Path) -> None:
    late = threading.Timer(0.3, (tmp_path / "notes").mkdir)
    late.start()
    check_shared(tmp_path / "notes")
    late.join()


def test_a_working_directory_that_was_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two raylets with one session folder do that, and torch then dies about oneMKL."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    require_working_directory()
    gone.rmdir()
    with pytest.raises(LaunchError, match="was removed under it on"):
        require_working_directory()
