from __future__ import annotations

import socket

import pytest

from launch.errors import LaunchError
from launch.ray_driver import check_reachable, describe_no_cluster, worker_env_vars
from launch.worker_group import WorkerJob


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
