"""Attempts, with the driver process replaced by what it leaves behind; tests/integration has a real Ray."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.attempts import _environment, run_job
from launch.driver import CONNECTED, UNWRITABLE
from launch.errors import LaunchError
from launch.outcome import JobOutcome, WorkerFailure, write_failure, write_outcome
from launch.processes.stop_signals import Stopped
from launch.worker import STEPPED, STOP, WorkerJob, log_path, read_attempt

JOB = WorkerJob("nowhere:nothing", {"resume": "never"}, 1)
LOST = WorkerFailure(0, "", "The actor died", "", 1.0)
OWN_ERROR = WorkerFailure(0, "builtins.ValueError", "boom", "", 1.0)
KILLED = -signal.SIGKILL

Driver = Callable[[Path], int]


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[Driver]:
    """What to run, attempt by attempt, in place of the process that talks to Ray; given the folder, gives a status."""
    waiting: list[Driver] = []
    monkeypatch.setattr("launch.attempts._watch_driver", lambda folder, *others: waiting.pop(0)(folder))
    return waiting


def leaves(*failures: WorkerFailure, stepped: bool = True) -> Driver:
    def driver(folder: Path) -> int:
        notes = read_attempt(folder).notes
        log_path(notes, 0).write_text("the last words of rank 0\n")
        if stepped:
            (notes / STEPPED).touch()
        write_outcome(folder, JobOutcome(failures))
        return 0

    return driver


def is_lost(folder: Path) -> int:
    (folder / "driver.log").write_text("Ray has no room\n")
    return KILLED


def run(max_restarts: int = 0, **others: object) -> JobOutcome:
    return run_job(JOB, lambda: None, max_restarts=max_restarts, **others)  # type: ignore[arg-type]


def test_logs_that_cannot_be_kept_do_not_hide_the_cause(tmp_path: Path, drivers: list[Driver]) -> None:
    (tmp_path / "file").write_text("")
    drivers += [leaves(OWN_ERROR)] * 2
    assert run(keep_logs=tmp_path / "file" / "logs").failures == (OWN_ERROR,)
    assert run(keep_logs=tmp_path / "logs").failures == (OWN_ERROR,)
    title, words = (tmp_path / "logs" / "rank-0.log").read_text().splitlines()
    assert title.startswith(f"======== attempt 1 of launch {os.getpid()}, ended 20")
    assert words == "the last words of rank 0"


@pytest.mark.parametrize("swapped", ["source", "kept"])
def test_a_link_in_the_place_of_a_log_is_not_followed_and_the_others_are_kept(
    tmp_path: Path, drivers: list[Driver], swapped: str
) -> None:
    secret, logs = tmp_path / "secret", tmp_path / "logs"
    secret.write_text("TOP-SECRET")
    logs.mkdir()

    def driver(folder: Path) -> int:
        for rank in range(2):
            log_path(read_attempt(folder).notes, rank).write_text(f"words of rank {rank}\n")
        link = log_path(folder if swapped == "source" else logs, 0)
        link.unlink(missing_ok=True)
        link.symlink_to(secret)
        write_outcome(folder, JobOutcome())
        return 0

    drivers.append(driver)
    said: list[str] = []
    run_job(replace(JOB, num_workers=2), lambda: None, keep_logs=logs, say=said.append)
    (line,) = said
    assert line.startswith(f"{logs / 'rank-0.log'}: the output of rank 0 could not be added (")
    assert secret.read_text() == "TOP-SECRET"
    assert (logs / "rank-1.log").read_text().endswith("words of rank 1\n")
    assert swapped == "kept" or not (logs / "rank-0.log").exists()


def test_a_launch_keeps_the_logs_of_those_before_it(tmp_path: Path, drivers: list[Driver]) -> None:
    drivers += [leaves(), leaves(OWN_ERROR)]
    run(keep_logs=tmp_path)
    run(keep_logs=tmp_path)
    assert (tmp_path / "rank-0.log").read_text().count("the last words") == 2


def test_what_was_lost_begins_again_until_it_succeeds(tmp_path: Path, drivers: list[Driver]) -> None:
    drivers += [leaves(LOST), is_lost, leaves()]
    told: list[tuple[int, str]] = []

    def before_restart(outcome: JobOutcome, lost: str) -> WorkerJob:
        told.append((outcome.attempt, lost))
        return replace(JOB, worker_config={"resume": "auto"})

    assert run(5, before_restart=before_restart, keep_logs=tmp_path) == JobOutcome(attempt=3)
    assert [attempt for attempt, _ in told] == [1, 2]
    assert "killed" in told[0][1]
    assert told[1][1].startswith("the process that runs Ray was killed by signal 9")
    assert (tmp_path / "rank-0.log").read_text().count("the last words") == 2, "one log over all attempts"


def test_a_later_attempt_runs_the_job_that_it_was_given(drivers: list[Driver]) -> None:
    seen = []

    def look(folder: Path) -> int:
        seen.append((read_attempt(folder).number, read_attempt(folder).job.worker_config))
        return leaves(*([LOST] if len(seen) < 3 else []))(folder)

    drivers += [look] * 3
    later = replace(JOB, worker_config={"resume": "auto"})
    run(5, before_restart=lambda outcome, lost: later)
    assert seen == [(1, {"resume": "never"}), (2, {"resume": "auto"}), (3, {"resume": "auto"})]


def test_the_same_death_twice_before_the_first_step_is_no_loss(drivers: list[Driver]) -> None:
    drivers += [leaves(LOST, stepped=False)] * 2
    outcome = run(max_restarts=9)
    assert (outcome.attempt, outcome.problem_is_loss) == (2, False)
    assert outcome.problem.startswith("rank 0: its process was killed")
    assert "both times before the first step" in outcome.problem


def test_another_death_or_a_step_in_between_is_a_loss_again(drivers: list[Driver]) -> None:
    elsewhere = replace(LOST, message="The actor died because its node has died.")
    drivers += [
        *(leaves(LOST, stepped=False), leaves(elsewhere, stepped=False), leaves(LOST, stepped=False)),
        *(leaves(LOST), leaves(LOST, stepped=False), leaves()),
    ]
    assert run(max_restarts=9) == JobOutcome(attempt=6)


def test_two_nodes_that_went_away_before_a_step_are_two_losses(drivers: list[Driver]) -> None:
    """As where machines are taken back by whoever lends them."""
    gone = replace(LOST, message="The actor died because its node has died.")
    drivers += [leaves(gone, stepped=False), leaves(gone, stepped=False), leaves()]
    assert run(max_restarts=9) == JobOutcome(attempt=3)


def is_told_to_stop(stepped: bool, *failures: WorkerFailure) -> Driver:
    """A driver whose command gets SIGTERM while it runs, and which ends as its ranks do."""

    def driver(folder: Path) -> int:
        notes = read_attempt(folder).notes
        if stepped:
            (notes / STEPPED).touch()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (notes / STOP).exists()
        write_outcome(folder, JobOutcome(failures))
        return 0

    return driver


@pytest.mark.parametrize("failures", [(), (LOST,)])
def test_ranks_that_have_made_a_step_are_asked_to_save_and_no_other_attempt_follows(
    drivers: list[Driver], failures: tuple[WorkerFailure, ...]
) -> None:
    drivers.append(is_told_to_stop(True, *failures))
    with pytest.raises(Stopped) as stopped:
        run(5, stop_patience=60.0)
    assert stopped.value.signal_number == signal.SIGTERM
    assert drivers == []


def test_an_error_on_the_way_to_the_last_checkpoint_is_told(drivers: list[Driver]) -> None:
    drivers.append(is_told_to_stop(True, OWN_ERROR))
    assert run(5, stop_patience=60.0).failures == (OWN_ERROR,)


@pytest.mark.parametrize(("stepped", "patience"), [(False, 60.0), (True, 0.0)])
def test_where_nothing_would_be_saved_the_first_signal_ends(
    drivers: list[Driver], stepped: bool, patience: float
) -> None:
    drivers.append(is_told_to_stop(stepped))
    with pytest.raises(Stopped):
        run(5, stop_patience=patience)


@pytest.mark.parametrize("max_restarts", [0, 2])
def test_the_budget_of_restarts_ends(drivers: list[Driver], max_restarts: int) -> None:
    drivers += [leaves(LOST)] * (max_restarts + 1)
    assert run(max_restarts) == JobOutcome((LOST,), attempt=max_restarts + 1)
    assert drivers == []


def test_an_error_of_a_rank_is_not_tried_again(drivers: list[Driver]) -> None:
    drivers += [leaves(LOST), leaves(OWN_ERROR)]
    assert run(5) == JobOutcome((OWN_ERROR,), attempt=2)


@pytest.mark.parametrize(
    ("status", "connected", "is_loss"), [(KILLED, False, True), (1, True, True), (1, False, False)]
)
def test_a_driver_that_never_reached_ray_would_fail_again(
    drivers: list[Driver], status: int, connected: bool, is_loss: bool
) -> None:
    def driver(folder: Path) -> int:
        is_lost(folder)
        if connected:
            (folder / CONNECTED).touch()
        return status

    drivers.append(driver)
    outcome = run()
    assert outcome.problem_is_loss == is_loss
    assert "Ray has no room" in outcome.problem


def test_an_outcome_that_found_no_room_is_no_loss(drivers: list[Driver]) -> None:
    def driver(folder: Path) -> int:
        (folder / CONNECTED).touch()
        return UNWRITABLE

    drivers.append(driver)
    outcome = run(5)
    assert (outcome.attempt, outcome.problem_is_loss) == (1, False)
    assert "make room there, or set TMPDIR" in outcome.problem


@pytest.mark.parametrize("what", ["tempfile.mkdtemp", "launch.attempts.write_attempt"])
def test_a_full_disk_is_an_error_that_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def no_room(*args: object, **keywords: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(what, no_room)
    with pytest.raises(LaunchError, match=r"^/\S*: cannot be written .*No space left.*make room there, or set TMPDIR"):
        run(5)


def test_logs_of_a_cluster_that_find_no_room_name_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match=r"file/logs: cannot be written .*or set run\.dir to another folder"):
        run(keep_logs=tmp_path / "file" / "logs", address="auto")


def test_what_ranks_wrote_tells_more_than_the_end_of_the_driver(drivers: list[Driver]) -> None:
    def driver(folder: Path) -> int:
        write_failure(folder, OWN_ERROR)
        return is_lost(folder)

    drivers.append(driver)
    assert run(5).failures == (OWN_ERROR,)


def test_a_stop_while_a_lost_attempt_is_cleared_away_starts_no_other(
    drivers: list[Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.attempts.end_processes", lambda folder: os.kill(os.getpid(), signal.SIGTERM))
    drivers += [leaves(LOST), lambda folder: pytest.fail("started again")]
    with pytest.raises(Stopped) as stopped:
        run(5)
    assert stopped.value.signal_number == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_the_command_was_told_to_ignore_does_not_stop_it(drivers: list[Driver]) -> None:
    def hang_up(folder: Path) -> int:
        os.kill(os.getpid(), signal.SIGHUP)
        return leaves()(folder)

    drivers += [hang_up] * 2
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert run() == JobOutcome()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Stopped, match="SIGHUP"):
            run()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_folder_of_data_with_the_name_of_a_package_hides_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/given")
    environment = _environment(tmp_path, address)
    root = Path(__file__).resolve().parents[3]
    assert environment["PYTHONPATH"] == f"{root}:/given"
    for name in ("shards", "launch"):
        (tmp_path / name).mkdir()
    look = "import shards.schema, launch.outcome; print(shards.schema.__file__)"
    run = subprocess.run(
        [sys.executable, "-c", look], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.stdout.strip() == str(root / "shards" / "schema.py"), run.stderr


def test_the_import_path_of_the_caller_may_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert not _environment(tmp_path, None)["PYTHONPATH"].endswith(":"), "an empty entry is the current folder"


def test_on_a_cluster_each_attempt_has_notes_of_its_own_that_all_nodes_share(
    tmp_path: Path, drivers: list[Driver]
) -> None:
    notes: list[Path] = []

    def look(folder: Path) -> int:
        attempt = read_attempt(folder)
        assert attempt.address == "auto"
        notes.append(attempt.notes)
        log_path(attempt.notes, 0).write_text("spoken\n")
        return KILLED if len(notes) == 1 else leaves()(folder)

    def first(folder: Path) -> int:
        look(folder)
        return is_lost(folder)

    drivers += [first, look]
    assert run(1, keep_logs=tmp_path, address="auto").attempt == 2
    assert notes[0] != notes[1]
    assert {folder.parent for folder in notes} == {tmp_path}
    assert [file.name for file in tmp_path.iterdir()] == ["rank-0.log"]
    with pytest.raises(ValueError, match="keep_logs"):
        run(address="auto")
