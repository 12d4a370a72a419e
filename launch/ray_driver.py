"""The process that owns a private Ray: starts it, runs one worker group, leaves an outcome. Run by launch.private_ray.

It is a process of its own because Ray takes over the signal handlers of whoever starts it and may end that process when
the raylet dies; the command that watches it stays in control either way.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

from launch.errors import LaunchError
from launch.worker_group import (
    JobOutcome,
    WorkerFailure,
    WorkerJob,
    order_by_cause,
    read_failures,
    read_job,
    run_rank,
    write_outcome,
)

OBJECT_STORE_BYTES = 100 * 2**20  # nothing but the job description and metrics goes through it


def main(folder: Path) -> None:
    """Run the job described in the folder.

    Args:
        folder: of the private Ray.
    """
    try:
        failures = run_worker_group(read_job(folder), folder)
        outcome = JobOutcome(failures=failures)
    except Exception as error:
        outcome = JobOutcome(problem=str(error), problem_traceback=traceback.format_exc())
    write_outcome(folder, outcome)


def run_worker_group(job: WorkerJob, folder: Path) -> tuple[WorkerFailure, ...]:
    """Start Ray, run the job on every worker, end Ray.

    Returns:
        The failures of ranks, the first one first; none after success.

    Raises:
        LaunchError: the machine has too few GPUs.
        Exception: what Ray raises when it cannot start or its controller fails.
    """
    import ray
    import torch
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = torch.cuda.is_available()
    if use_gpu and torch.cuda.device_count() < job.num_workers:
        raise LaunchError(
            f"{job.num_workers} workers want a GPU each, this machine has {torch.cuda.device_count()}; "
            "use fewer workers, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // job.num_workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of several ranks starve each other
    ray.init(
        address="local",
        num_cpus=job.num_workers,  # slots, not cores: more workers than cores run, slower
        num_gpus=job.num_workers if use_gpu else 0,
        include_dashboard=True,  # without it Ray waits for its autoscaler and prints tracebacks
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(folder),
    )
    trainer = TorchTrainer(
        _train_loop,
        train_loop_config={"job": vars(job), "folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=job.num_workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="job",
            storage_path=str(folder / "train"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),
        ),
    )
    try:
        trainer.fit()
        return ()
    except WorkerGroupError as error:
        return _describe_failures(error.worker_failures, folder)
    finally:
        ray.shutdown()


def _train_loop(loop_config: dict) -> None:
    """The function that Ray Train calls on every rank."""
    import ray.train

    run_rank(WorkerJob(**loop_config["job"]), Path(loop_config["folder"]), ray.train.report)


def _describe_failures(by_rank: dict[int, Exception], folder: Path) -> tuple[WorkerFailure, ...]:
    """What the ranks wrote down, and in Ray's words what became of those that could not; the likely cause first."""
    written = read_failures(folder)
    known = {failure.rank for failure in written}
    lost = [WorkerFailure(r, "", str(error), "", time.time()) for r, error in by_rank.items() if r not in known]
    return order_by_cause([*written, *lost])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
