"""Following and stopping, against a cluster that is scripted; tests/integration/test_launch.py has a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from launch.errors import LaunchError
from launch.jobs import jobs
from launch.jobs.client import JobState
from launch.jobs.jobs import check_cluster, exit_status, follow, stop, submit
from launch.jobs.spec import REQUIREMENTS_FILE, RUN_DIR_KEY, VERSION_KEY, JobSpec, world_sizes
from t4p.config.data import DataConfig
from t4p.config.run import RunConfig
from t4p.config.tasks import PretrainConfig
from t4p.errors import ConfigError


def state(status: str, exit_code: int | None = None) -> JobState:
    return JobState("run-1", status, {}, None, None, exit_code, "")


class ScriptedCluster:
    """Answers with the next of a list; an error in the list is raised."""

    def __init__(self, *answers: tuple[JobState, str] | Exception) -> None:
        self._answers: Iterator[tuple[JobState, str] | Exception] = iter(answers)
        self._log = ""
        self.stops = 0

    def job(self, job_id: str) -> JobState:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        now, self._log = answer
        return now

    def log(self, job_id: str) -> str:
        return self._log

    def request_stop(self, job_id: str) -> None:
        self.stops += 1


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sleeping takes no time, and moves the clock."""
    now = [0.0]
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def test_every_character_is_passed_on_once() -> None:
    cluster = ScriptedCluster(
        (state("PENDING"), ""), (state("RUNNING"), "a\n"), (state("RUNNING"), "a\nb"), (state("SUCCEEDED"), "a\nbc\n")
    )
    printed: list[str] = []
    assert follow(cluster, "run-1", printed.append).status == "SUCCEEDED"  # type: ignore[arg-type]
    assert printed == ["a\n", "b", "c\n"]


def test_a_cluster_that_is_silent_for_a_moment_is_waited_for() -> None:
    silent = [LaunchError("does not answer")] * 5
    cluster = ScriptedCluster((state("RUNNING"), "a\n"), *silent, (state("FAILED", 1), "a\nb\n"))
    printed: list[str] = []
    assert follow(cluster, "run-1", printed.append).status == "FAILED"  # type: ignore[arg-type]
    assert "".join(printed) == "a\nb\n"


def test_a_cluster_that_stays_silent_ends_the_following_and_says_what_to_do() -> None:
    cluster = ScriptedCluster((state("RUNNING"), ""), *[LaunchError("does not answer")] * 1000)
    with pytest.raises(LaunchError, match="job run-1 may still run: `t4p launch logs run-1 --follow`"):
        follow(cluster, "run-1", lambda text: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("job", "status"),
    [
        (state("SUCCEEDED", 0), 0),
        (state("FAILED", 1), 1),
        (state("FAILED", 2), 2),
        (state("FAILED", 137), 1),  # killed
        (state("FAILED"), 1),  # never ran, or its node is gone
        (state("STOPPED"), 1),
    ],
)
def test_the_exit_status_is_that_of_the_command(job: JobState, status: int) -> None:
    assert exit_status(job) == status


def test_stopping_waits_for_the_end() -> None:
    cluster = ScriptedCluster((state("RUNNING"), ""), (state("RUNNING"), ""), (state("STOPPED"), ""))
    assert stop(cluster, "run-1").status == "STOPPED"  # type: ignore[arg-type]
    assert cluster.stops == 1


def test_stopping_does_not_wait_for_ever() -> None:
    cluster = ScriptedCluster(*[(state("RUNNING"), "")] * 1000)
    with pytest.raises(LaunchError, match="still RUNNING 5 s after"):
        stop(cluster, "run-1", timeout=5)  # type: ignore[arg-type]


def test_a_job_that_is_over_is_not_stopped_again() -> None:
    cluster = ScriptedCluster((state("FAILED", 1), ""))
    assert stop(cluster, "run-1").status == "FAILED"  # type: ignore[arg-type]
    assert cluster.stops == 0


class ClusterWithAJob:
    """Room for one worker, and one job that runs."""

    address = "http://here:8265"

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 4.0}]

    def jobs(self) -> list[JobState]:
        metadata = {VERSION_KEY: "0", RUN_DIR_KEY: "/fsx/runs/first"}
        return [JobState("run-1", "RUNNING", metadata, None, None, None, "")]


def test_two_spellings_of_a_run_folder_are_one_folder() -> None:
    sizes = world_sizes(PretrainConfig(run=RunConfig(dir="unused"), data=DataConfig(shards=("nowhere",))), 1)

    def job_in(run_dir: str) -> JobSpec:
        return JobSpec("run-2", "true", sizes, {}, (), {REQUIREMENTS_FILE: b""}, {RUN_DIR_KEY: run_dir})

    for spelling in ("/fsx/runs/first", "/fsx/runs/first/", "/fsx//runs/./second/../first"):
        with pytest.raises(ConfigError, match="job run-1 is RUNNING in it"):
            check_cluster(ClusterWithAJob(), job_in(spelling))  # type: ignore[arg-type]
    check_cluster(ClusterWithAJob(), job_in("/fsx/runs/second"))  # type: ignore[arg-type]


def test_a_full_disk_is_no_riddle_when_a_job_is_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "check_cluster", lambda *args: None)
    monkeypatch.setattr("tempfile.mkdtemp", no_room)
    with pytest.raises(LaunchError, match=r"temporary files: cannot be written .*make room there, or set TMPDIR"):
        submit(ClusterWithAJob(), None)  # type: ignore[arg-type]
