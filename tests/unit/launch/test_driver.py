from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.driver import (
    UNWRITABLE,
    _run_worker_group,
    _usable_gpus,
    check_reachable,
    describe_no_cluster,
    describe_no_places,
    main,
    worker_env_vars,
)
from launch.errors import LaunchError
from launch.worker import Attempt, WorkerJob, write_attempt


def test_the_environment_that_a_ray_job_gives_is_left_alone() -> None:
    job = WorkerJob("module:function", {}, 2, cpus_per_worker=6)
    wanted = {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "DS_ACCELERATOR": "cpu"}
    assert worker_env_vars(job, {}) == wanted
    assert "OMP_NUM_THREADS" not in worker_env_vars(job, {"OMP_NUM_THREADS": "2", "AWS_REGION": "x"})


def test_workers_with_gpus_choose_their_accelerator_themselves() -> None:
    job = WorkerJob("module:function", {}, 2, gpus_per_worker=1)
    assert "DS_ACCELERATOR" not in worker_env_vars(job, {})


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_reachable(address)
    with pytest.raises(LaunchError, match=rf"RAY_ADDRESS is {address}, where no Ray cluster listens"):
        check_reachable(address)


@pytest.mark.parametrize("address", ["", "auto", "local", "ray://host:10001", "host"])
def test_other_kinds_of_addresses_are_left_to_ray(address: str) -> None:
    check_reachable(address)


def test_a_wrong_token_is_told_from_a_cluster_that_is_not_there() -> None:
    refused = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    assert "no Ray cluster to connect to (Failed to connect" in describe_no_cluster(refused)
    refused.__cause__ = RuntimeError("RPC error: InvalidAuthToken: Authentication token is missing or incorrect.")
    assert "the token is missing or wrong; set RAY_AUTH_MODE=token" in describe_no_cluster(refused)


def test_an_outcome_that_finds_no_room_ends_with_a_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: object) -> None:
        raise OSError(28, "No space left on device")

    write_attempt(tmp_path, Attempt(WorkerJob("module:function", {}, 1), 1, None, tmp_path))
    monkeypatch.setattr("launch.driver.run_attempt", lambda *args: ())
    monkeypatch.setattr("launch.driver.write_outcome", no_room)
    with pytest.raises(SystemExit) as ended:
        main(tmp_path)
    assert ended.value.code == UNWRITABLE


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        (None, "4 worker(s) found no places on this machine within 600 s: the machine is too busy; launch again"),
        ("auto", "4 worker(s) found no places on the cluster, each with 6 CPU(s) and 1 GPU(s), within 600 s: other"),
    ],
)
def test_workers_without_a_place_are_counted_with_the_seconds_and_the_next_move(
    tmp_path: Path, address: str | None, wanted: str
) -> None:
    job = WorkerJob("module:function", {}, 4, cpus_per_worker=6, gpus_per_worker=1)
    told = describe_no_places(Attempt(job, 1, address, tmp_path), "600")
    assert told.startswith(wanted)
    assert told.endswith("use fewer workers, or set RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S to more seconds")


@pytest.mark.parametrize("in_time", [False, True])
def test_ray_train_says_by_its_class_that_no_places_were_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_time: bool
) -> None:
    """Against the installed Ray, whose class is private and may be renamed."""
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def fit(trainer: DataParallelTrainer) -> None:
        raise ControllerError(ValueError("another") if in_time else WorkerGroupStartupTimeoutError(1))

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "7")
    monkeypatch.setattr(DataParallelTrainer, "fit", fit)
    attempt = Attempt(WorkerJob("module:function", {}, 1), 1, None, tmp_path)
    with pytest.raises(ControllerError if in_time else LaunchError, match="another" if in_time else "within 7 s"):
        _run_worker_group(attempt, tmp_path, use_gpu=False)


@pytest.mark.parametrize(("found", "num_workers", "wanted"), [(0, 4, False), (4, 4, True), (8, 4, True), (2, 4, None)])
def test_workers_of_a_private_ray_have_a_gpu_each_or_none(
    monkeypatch: pytest.MonkeyPatch, found: int, num_workers: int, wanted: bool | None
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: found)
    if wanted is None:
        with pytest.raises(LaunchError, match="4 workers want a GPU each, this machine has 2; use fewer workers"):
            _usable_gpus(found, num_workers)
    else:
        assert _usable_gpus(found, num_workers) is wanted


def test_gpus_that_torch_was_not_built_for_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert not _usable_gpus(8, 4)
