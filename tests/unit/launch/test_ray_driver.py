from __future__ import annotations

from launch.ray_driver import worker_env_vars
from launch.worker_group import WorkerJob


def test_the_environment_that_a_ray_job_gives_is_left_alone() -> None:
    job = WorkerJob("module:function", {}, 2, cpus_per_worker=6)
    wanted = {"OMP_NUM_THREADS": "6", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "DS_ACCELERATOR": "cpu"}
    assert worker_env_vars(job, {}) == wanted
    assert "OMP_NUM_THREADS" not in worker_env_vars(job, {"OMP_NUM_THREADS": "2", "AWS_REGION": "x"})


def test_workers_with_gpus_choose_their_accelerator_themselves() -> None:
    job = WorkerJob("module:function", {}, 2, gpus_per_worker=1)
    assert "DS_ACCELERATOR" not in worker_env_vars(job, {})
