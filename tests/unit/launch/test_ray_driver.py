from __future__ import annotations

import socket
from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.ray_driver import UNWRITABLE, check_reachable, describe_no_cluster, main, worker_env_vars
from launch.worker_group import Attempt, WorkerJob, write_attempt


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
    monkeypatch.setattr("launch.ray_driver.run_attempt", lambda *args: ())
    monkeypatch.setattr("launch.ray_driver.write_outcome", no_room)
    with pytest.raises(SystemExit) as ended:
        main(tmp_path)
    assert ended.value.code == UNWRITABLE
