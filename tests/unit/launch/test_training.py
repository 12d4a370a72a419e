from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from saved_checkpoint import save_checkpoint

from launch.errors import LaunchError
from launch.outcome import JobOutcome, WorkerFailure
from launch.training import check_call, config_of_restart, job_of, launch_training, newest_step, raise_failure
from launch.worker import describe_error
from shards.errors import CallError
from shards.stores.store import MissingBucketError
from t4p.config.data import DataConfig
from t4p.config.run import ClusterConfig, RunConfig, TrainConfig
from t4p.config.tasks import PretrainConfig
from t4p.errors import ClipError, ConfigError, RunError
from t4p.runs.checkpoint import CheckpointState
from t4p.runs.lock import is_locked
from t4p.runs.universal import universal_of


def config_with_batch(global_batch_size: int, run_dir: Path) -> PretrainConfig:
    return PretrainConfig(
        run=RunConfig(dir=str(run_dir)),
        data=DataConfig(shards=("nowhere",)),
        train=TrainConfig(global_batch_size=global_batch_size),
    )


@pytest.mark.parametrize("num_workers", [1, 4])
def test_as_many_workers_as_frames_are_fine(tmp_path: Path, num_workers: int) -> None:
    check_call(config_with_batch(4, tmp_path), num_workers)


def test_more_workers_than_frames_are_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.training.run_job", lambda *args, **keywords: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=r"train\.global_batch_size: 4, and there are 5 workers"):
        launch_training(config_with_batch(4, tmp_path / "run"), 5)
    with pytest.raises(ConfigError, match="--workers: 0"):
        launch_training(config_with_batch(4, tmp_path / "run"), 0)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.training.run_job", lambda *args, **keywords: pytest.fail("Ray was started"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.dir .*/file/run: cannot be written .*set run\.dir to a folder"):
        launch_training(config_with_batch(4, tmp_path / "file" / "run"), 1)


def test_a_full_disk_is_found_before_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.training.TemporaryFile", lambda dir: Path("/dev/full").open("wb"))  # noqa: SIM115
    with pytest.raises(ConfigError, match=r"run\.dir .*: cannot be written .*No space left"):
        check_call(config_with_batch(4, tmp_path), 1)


def test_the_proof_leaves_nothing_in_the_run_folder(tmp_path: Path) -> None:
    check_call(config_with_batch(4, tmp_path / "run"), 1)
    assert list((tmp_path / "run").iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from t4p.train.run_folder import claim
lock = claim(Path(sys.argv[1]))
print("claimed", flush=True)
sys.stdin.read()
"""


def test_a_folder_with_a_run_in_it_is_refused_before_ray_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with pytest.raises(ConfigError, match=r"run\.dir .*: another run is in it; wait for its end, or choose"):
            check_call(config_with_batch(4, tmp_path), 1)
        check_call(config_with_batch(4, tmp_path), 1, "auto")  # rank 0 of the job asks
        other.communicate("")
    check_call(config_with_batch(4, tmp_path), 1)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize(
    ("outcome", "wanted"),
    [
        (
            JobOutcome((WorkerFailure(0, "builtins.ValueError", "boom", "", 1.0),)),
            "rank 0 of 1 failed: ValueError: boom",
        ),
        (JobOutcome(problem="Ray cannot start"), "Ray cannot start"),
    ],
)
def test_a_story_that_cannot_be_written_does_not_hide_the_cause(
    tmp_path: Path, outcome: JobOutcome, wanted: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError) as caught:
        raise_failure(outcome, 1, tmp_path / "file" / "run")
    message, where = str(caught.value).splitlines()
    assert message == wanted
    assert where.startswith("the whole story could not be written to")


def test_success_raises_nothing_and_writes_nothing(tmp_path: Path) -> None:
    raise_failure(JobOutcome(), 2, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error_type", "message", "wanted"),
    [
        ("builtins.ValueError", "boom", "rank 1 of 2 failed: ValueError: boom"),
        ("torch.OutOfMemoryError", "no room", "rank 1 of 2 failed: torch.OutOfMemoryError: no room"),
        ("shards.errors.ShardError", "shard-000000.tar, key a/b: damaged", "rank 1 of 2 failed: shard-000000.tar, key"),
        ("", "The actor died unexpectedly", "rank 1 of 2 failed: its process was killed, or crashed"),
        (
            "",
            "the node running low on memory",
            "rank 1 of 2 failed: Ray ended it because the machine ran out of memory",
        ),
    ],
)
def test_a_failure_names_the_rank_and_the_cause(tmp_path: Path, error_type: str, message: str, wanted: str) -> None:
    for_users = error_type.startswith("shards.")
    outcome = JobOutcome((WorkerFailure(1, error_type, message, "Traceback ...", 1.0, for_users=for_users),))
    with pytest.raises(LaunchError) as caught:
        raise_failure(outcome, 2, tmp_path / "run")
    assert str(caught.value).startswith(wanted)
    assert isinstance(caught.value, RunError)  # exit status 1
    story = (tmp_path / "run" / "error.txt").read_text()
    assert "rank 1" in story
    assert "Traceback ..." in story


@pytest.mark.parametrize("num_lines", [2, 20_000])
def test_the_story_quotes_the_end_of_a_log(tmp_path: Path, num_lines: int) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "rank-0.log").write_text("".join(f"line {number} é\n" for number in range(num_lines)))
    with pytest.raises(LaunchError):
        raise_failure(JobOutcome((WorkerFailure(0, "builtins.ValueError", "boom", "", 1.0),)), 1, tmp_path)
    story = (tmp_path / "error.txt").read_text()
    assert f"line {num_lines - 1} é\n" in story
    assert ("line 0 é" in story) == (num_lines == 2)
    assert len(story) < 25_000


@pytest.mark.parametrize("mistake", [ConfigError, ClipError, CallError, MissingBucketError])
def test_a_mistake_that_only_a_worker_can_see_is_still_a_mistake_of_the_call(
    tmp_path: Path, mistake: type[Exception]
) -> None:
    failure = describe_error(0, mistake("data.image_size is 481x640"))
    with pytest.raises(ConfigError, match=r"^data\.image_size is 481x640$"):
        raise_failure(JobOutcome((failure,)), 1, tmp_path / "run")


def test_a_problem_of_ray_itself_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="Ray cannot start"):
        raise_failure(JobOutcome(problem="Ray cannot start", problem_traceback="Traceback ..."), 1, tmp_path / "run")
    assert "Traceback ..." in (tmp_path / "run" / "error.txt").read_text()


def test_the_end_of_the_budget_names_the_attempts_and_the_last_reason(tmp_path: Path) -> None:
    lost = JobOutcome((WorkerFailure(1, "", "The actor died unexpectedly", "", 1.0),), attempt=4)
    with pytest.raises(LaunchError) as caught:
        raise_failure(lost, 2, tmp_path)
    message, where = str(caught.value).splitlines()
    assert message.startswith("gave up after 4 attempts (cluster.max_restarts is 3); nothing is saved yet: ")
    assert "rank 1 of 2 failed: its process was killed" in message
    assert str(tmp_path / "error.txt") in where


def test_an_error_after_a_restart_is_told_as_itself(tmp_path: Path) -> None:
    failed = JobOutcome((WorkerFailure(1, "builtins.ValueError", "boom", "", 1.0),), attempt=2)
    with pytest.raises(LaunchError, match=r"^rank 1 of 2 failed: ValueError: boom"):
        raise_failure(failed, 2, tmp_path)


def test_the_story_tells_every_attempt_of_every_launch(tmp_path: Path) -> None:
    """A second launch in the folder of a live one is refused; it must not wipe what that one wrote."""
    for attempt, problem in ((1, "an older launch"), (1, "first"), (2, "second")):
        with pytest.raises(LaunchError):
            raise_failure(JobOutcome(problem=problem, attempt=attempt), 1, tmp_path)
    story = (tmp_path / "error.txt").read_text()
    titles, problems = story.splitlines()[::2], story.splitlines()[1::2]
    assert problems == ["an older launch", "first", "second"]
    assert [title.partition(" of launch")[0] for title in titles] == [f"======== attempt {n}" for n in (1, 1, 2)]


def checkpoint_at(step: int, checkpoints: Path) -> Path:
    state = CheckpointState(step, 1, {"train": {"zero_stage": 0}}, (), "", {})
    return save_checkpoint(checkpoints / f"step_{step:08d}", state)


def config_that_resumes(resume: str, run_dir: Path) -> PretrainConfig:
    config = config_with_batch(4, run_dir)
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": resume})})


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_restart_goes_on_from_the_newest_checkpoint(tmp_path: Path, resume: str) -> None:
    assert config_of_restart(config_that_resumes(resume, tmp_path)) == config_that_resumes("auto", tmp_path)


def test_a_restart_begins_at_the_named_checkpoint_until_there_is_a_newer_one(tmp_path: Path) -> None:
    named = checkpoint_at(7, tmp_path / "other" / "checkpoints")
    config = config_that_resumes(str(named), tmp_path / "run")
    assert config_of_restart(config) == config
    checkpoint_at(8, tmp_path / "run" / "checkpoints")
    assert config_of_restart(config).train.resume == "auto"


def test_the_newest_step_is_of_a_checkpoint_with_a_marker(tmp_path: Path) -> None:
    assert newest_step(tmp_path / "checkpoints") == 0
    checkpoint_at(4, tmp_path / "checkpoints")
    checkpoint_at(12, tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "step_00000016").mkdir()
    assert newest_step(tmp_path / "checkpoints") == 12


def test_the_universal_form_of_a_checkpoint_is_no_step_of_its_own(tmp_path: Path) -> None:
    checkpoint = checkpoint_at(12, tmp_path / "checkpoints")
    checkpoint.rename(universal_of(checkpoint))
    checkpoint_at(4, tmp_path / "checkpoints")
    assert newest_step(tmp_path / "checkpoints") == 4


def test_on_a_cluster_the_run_folder_must_be_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_call(config_with_batch(4, Path("run")), 2)
    with pytest.raises(ConfigError, match=r"run\.dir is run, which is another folder on every node"):
        check_call(config_with_batch(4, Path("run")), 2, "auto")
    check_call(config_with_batch(4, tmp_path / "run"), 2, "auto")


def test_the_job_asks_for_what_the_cluster_section_says(tmp_path: Path) -> None:
    config = config_with_batch(4, tmp_path).model_copy(
        update={"cluster": ClusterConfig(gpus_per_node=8, cpus_per_worker=6)}
    )
    job = job_of(config, 16)
    assert (job.num_workers, job.cpus_per_worker, job.gpus_per_worker) == (16, 6, 1)
    assert job_of(config_with_batch(4, tmp_path), 2).gpus_per_worker == 0
