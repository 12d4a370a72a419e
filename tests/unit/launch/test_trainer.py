from __future__ import annotations

from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.trainer import check_call, launch_pretrain, raise_failure
from launch.worker_group import JobOutcome, WorkerFailure
from t4p.config import DataConfig, PretrainConfig, RunConfig, TrainConfig
from t4p.errors import ConfigError, RunError


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
    monkeypatch.setattr("launch.trainer.run_job", lambda *args, **keywords: pytest.fail("Ray was started"))
    with pytest.raises(ConfigError, match=r"--workers is 5, but train\.global_batch_size is 4"):
        launch_pretrain(config_with_batch(4, tmp_path / "run"), 5)
    with pytest.raises(ConfigError, match="--workers is 0"):
        launch_pretrain(config_with_batch(4, tmp_path / "run"), 0)
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.trainer.run_job", lambda *args, **keywords: pytest.fail("Ray was started"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.dir .*/file/run: cannot be written .*set run\.dir to a folder"):
        launch_pretrain(config_with_batch(4, tmp_path / "file" / "run"), 1)


def test_the_proof_leaves_nothing_in_the_run_folder(tmp_path: Path) -> None:
    check_call(config_with_batch(4, tmp_path / "run"), 1)
    assert list((tmp_path / "run").iterdir()) == []


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
        ("shards.schema.ShardError", "shard-000000.tar, key a/b: damaged", "rank 1 of 2 failed: shard-000000.tar, key"),
        ("", "The actor died unexpectedly", "rank 1 of 2 failed: its process was killed, or crashed"),
        (
            "",
            "the node running low on memory",
            "rank 1 of 2 failed: Ray ended it because the machine ran out of memory",
        ),
    ],
)
def test_a_failure_names_the_rank_and_the_cause(tmp_path: Path, error_type: str, message: str, wanted: str) -> None:
    outcome = JobOutcome((WorkerFailure(1, error_type, message, "Traceback ...", 1.0),))
    with pytest.raises(LaunchError) as caught:
        raise_failure(outcome, 2, tmp_path / "run")
    assert str(caught.value).startswith(wanted)
    assert isinstance(caught.value, RunError)  # exit status 1
    story = (tmp_path / "run" / "error.txt").read_text()
    assert "rank 1" in story
    assert "Traceback ..." in story


def test_a_mistake_that_only_a_worker_can_see_is_still_a_mistake_of_the_call(tmp_path: Path) -> None:
    failure = WorkerFailure(0, "t4p.errors.ConfigError", "data.image_size is 481x640", "Traceback ...", 1.0)
    with pytest.raises(ConfigError, match=r"^data\.image_size is 481x640$"):
        raise_failure(JobOutcome((failure,)), 1, tmp_path / "run")


def test_a_problem_of_ray_itself_is_told(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="Ray cannot start"):
        raise_failure(JobOutcome(problem="Ray cannot start", problem_traceback="Traceback ..."), 1, tmp_path / "run")
    assert (tmp_path / "run" / "error.txt").read_text().startswith("Traceback ...")
