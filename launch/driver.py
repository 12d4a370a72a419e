"""The process that talks to Ray: one attempt at a job, on a Ray of its own or on a cluster. Run by launch.attempts.

It is a process of its own because Ray takes over the signal handlers of whoever starts it and may end that process when
the raylet dies; the command that watches it stays in control either way.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from launch.errors import LaunchError
from launch.outcome import (
    SLOW_START,
    JobOutcome,
    WorkerFailure,
    follows_loss,
    order_by_cause,
    read_failures,
    write_outcome,
)
from launch.placement import WorkerResources, describe_shortage
from launch.processes.private_folder import RAY
from launch.ray_package import load_ray, load_ray_train, load_trainer
from launch.rendezvous import rendezvous_config
from launch.worker import (
    Attempt,
    WorkerJob,
    check_shared,
    describe_error,
    read_attempt,
    require_working_directory,
    run_rank,
)
from t4p.heartbeat import title_process

LOOPBACK = "127.0.0.1"  # the one address with which Ray's own servers listen there alone
OBJECT_STORE_BYTES = 100 * 2**20  # nothing but the job description and metrics goes through it
# Seconds until a cluster must have shown nodes that can hold the world. A cluster that just came up announces them one
# after another; after a lost node, whoever runs the cluster may be putting another in its place.
FIRST_PATIENCE = 5.0
REACHABLE_TIMEOUT = 5.0  # seconds for a TCP connection to the head
# How long Ray Train waits for free places, by its own variable; launch.attempts gives a default.
START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
# One line each, for whoever watches: the driver has no terminal.
SAID = "said.txt"
UNWRITABLE = os.EX_IOERR  # exit status: the disk has no room for the outcome, which is no loss to begin again after
CONNECTED = "connected"  # a file that tells: this far Ray has come


def main(folder: Path) -> None:
    """Make the attempt that is described in the folder, and leave its outcome there.

    Args:
        folder: private to this attempt.
    """
    title_process("t4p-driver")
    attempt = read_attempt(folder)
    try:
        outcome = JobOutcome(failures=run_attempt(attempt, folder))
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        lost = follows_loss(error)
        outcome = JobOutcome(
            problem=f"a process of Ray's own is gone ({first_line})" if lost else str(error),
            problem_traceback=traceback.format_exc(),
            problem_is_loss=lost or SLOW_START in first_line,
        )
    try:
        write_outcome(folder, outcome)
    except OSError:
        traceback.print_exc()
        sys.exit(UNWRITABLE)


def run_attempt(attempt: Attempt, folder: Path) -> tuple[WorkerFailure, ...]:
    """Start Ray or connect to it, run the job on every worker, end Ray or leave it.

    Returns:
        The failures of ranks, the likely cause first; none after success.

    Raises:
        LaunchError: there are too few GPUs or nodes, or no Ray to connect to.
        Exception: what Ray raises when it cannot start or its controller fails.
    """
    ray = load_ray()
    use_gpu = _start_private_ray(attempt.job, folder) if attempt.address is None else _join_cluster(attempt, folder)
    (folder / CONNECTED).touch()
    try:
        return _run_worker_group(attempt, folder, use_gpu)
    finally:
        ray.shutdown()


def worker_env_vars(job: WorkerJob, given: Mapping[str, str]) -> dict[str, str]:
    """What workers on a cluster need in their environment beyond what the Ray job gives them.

    Args:
        given: environment of the Ray job. Ray refuses a name that stands in both, and the user's word counts.
    """
    wanted = {
        "OMP_NUM_THREADS": str(job.cpus_per_worker),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads of several ranks starve each other
        "PYTHONUNBUFFERED": "1",
    }
    if not job.gpus_per_worker:
        wanted["DS_ACCELERATOR"] = "cpu"
    return {name: value for name, value in wanted.items() if name not in given}


def check_reachable(ray_address: str) -> None:
    """Refuse an address that nobody listens at: Ray itself tries for minutes, and then aborts.

    Args:
        ray_address: value of RAY_ADDRESS; anything but host:port is left to Ray.

    Raises:
        LaunchError: names the address.
    """
    host, colon, port = ray_address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACHABLE_TIMEOUT).close()
    except OSError as error:
        raise LaunchError(
            f"RAY_ADDRESS is {ray_address}, where no Ray cluster listens ({error}); set it to host:port of the head of "
            "one, as `ray status` on a node shows it"
        ) from error


def describe_no_cluster(error: BaseException) -> str:
    """Why Ray did not connect, and the next move."""
    if "AuthToken" in "".join(traceback.format_exception(error)):
        return (
            f"{error}: the token is missing or wrong; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with "
            "the token of this cluster"
        )
    return (
        f"there is no Ray cluster to connect to ({str(error).partition(chr(10))[0]}); run it inside a Ray job or on a "
        "node of the cluster, or set RAY_ADDRESS to host:port of its head"
    )


def describe_no_places(attempt: Attempt, patience: str) -> str:
    """What to say when Ray Train got no places for the workers in time.

    Args:
        patience: seconds, as START_TIMEOUT has it.
    """
    job = attempt.job
    each = f"{job.cpus_per_worker} CPU(s)" + (f" and {job.gpus_per_worker} GPU(s)" if job.gpus_per_worker else "")
    where = "on this machine" if attempt.address is None else f"on the cluster, each with {each},"
    busy = "the machine is too busy" if attempt.address is None else "other jobs hold them (`ray status` shows which)"
    return (
        f"{job.num_workers} worker(s) found no places {where} within {patience} s: {busy}; launch again later, use "
        f"fewer workers, or set {START_TIMEOUT} to more seconds"
    )


def _start_private_ray(job: WorkerJob, folder: Path) -> bool:
    """Returns whether the workers have a GPU each."""
    ray = load_ray()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // job.num_workers)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    ray.init(
        address="local",
        num_cpus=job.num_workers,  # slots, not cores: more workers than cores run, slower
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address=LOOPBACK,
        _temp_dir=str(folder / RAY),
    )
    return _usable_gpus(int(ray.cluster_resources().get("GPU", 0)), job.num_workers)


def _usable_gpus(found: int, num_workers: int) -> bool:
    """Whether the workers of a private Ray have a GPU each.

    Args:
        found: GPUs that Ray sees on this machine.

    Raises:
        LaunchError: there are some, and fewer than workers.
    """
    if found:
        import torch  # which a machine without a GPU is spared

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if 0 < found < num_workers:
        raise LaunchError(
            f"{num_workers} workers want a GPU each, this machine has {found}; "
            "use fewer workers, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    return found > 0


def _join_cluster(attempt: Attempt, folder: Path) -> bool:
    """Returns whether the workers have a GPU each."""
    ray = load_ray()
    job = attempt.job
    check_reachable(os.environ.get("RAY_ADDRESS", ""))
    # Inside a Ray job ray.init merges the job's environment (working_dir included) into what it is given.
    of_job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    try:
        ray.init(
            address=attempt.address,
            runtime_env={"env_vars": worker_env_vars(job, of_job.get("env_vars") or {})},
            log_to_driver=False,
            logging_level="ERROR",
        )
    except ConnectionError as error:
        raise LaunchError(describe_no_cluster(error)) from error
    require_working_directory()
    # `t4p launch stop` sends it to every process of the job: the command asks the ranks to save, and ends this one.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _wait_for_nodes(attempt, folder)
    return job.gpus_per_worker > 0


def _wait_for_nodes(attempt: Attempt, folder: Path) -> None:
    """Return as soon as the cluster's nodes could hold the world; say so where they are busy with other work.

    Raises:
        LaunchError: they are too few or too small, and none was added in time.
    """
    ray = load_ray()
    job = attempt.job
    worker = WorkerResources(job.cpus_per_worker, job.gpus_per_worker)
    patience = FIRST_PATIENCE if attempt.number == 1 else float(os.environ[START_TIMEOUT])
    end = time.monotonic() + patience
    said = False
    while shortage := describe_shortage(
        [node["Resources"] for node in ray.nodes() if node["Alive"]], worker, job.num_workers
    ):
        if time.monotonic() > end:
            raise LaunchError(shortage)
        if attempt.number > 1 and not said:
            _say(folder, f"waiting up to {patience:g} s for nodes in place of what was lost: {shortage}")
            said = True
        time.sleep(0.5)
    if not job.gpus_per_worker and (gpus := ray.cluster_resources().get("GPU", 0)):
        _say(
            folder,
            f"this cluster has {gpus:g} GPU(s), and the job asks for none: it trains on CPUs; for a GPU each, set "
            "cluster.gpus_per_node (configs/cluster has overlays)",
        )
    free = ray.available_resources()
    wanted = {"CPU": job.cpus_per_worker * job.num_workers, "GPU": job.gpus_per_worker * job.num_workers}
    short = [
        f"{free.get(name, 0):g} of {number} {name}(s)" for name, number in wanted.items() if number > free.get(name, 0)
    ]
    if short:
        _say(
            folder,
            f"the cluster is busy: {' and '.join(short)} are free; waiting up to {os.environ[START_TIMEOUT]} s "
            f"({START_TIMEOUT} changes that)",
        )


def _run_worker_group(attempt: Attempt, folder: Path, use_gpu: bool) -> tuple[WorkerFailure, ...]:
    train = load_ray_train()
    job = attempt.job
    resources = {"CPU": float(job.cpus_per_worker)} | ({"GPU": 1.0} if use_gpu else {})
    trainer = load_trainer()(
        _train_loop,
        train_loop_config={
            "job": vars(job),
            "notes": str(attempt.notes),
            "on_cluster": attempt.address is not None,
        },
        scaling_config=train.ScalingConfig(
            num_workers=job.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=None if attempt.address is None else resources,
            # A world on CPUs is one worker per node. One on GPUs fills its nodes, whose GPUs are close to each other.
            placement_strategy="PACK" if use_gpu else "SPREAD",
        ),
        backend_config=rendezvous_config(),
        run_config=train.RunConfig(
            name="job",
            storage_path=str(folder / "train"),
            # Ray restarts nothing by itself: the command counts attempts, and decides which failures are worth one.
            failure_config=train.FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
        ),
    )
    try:
        trainer.fit()
    except train.WorkerGroupError as error:
        return _describe_failures(error.worker_failures, attempt.notes)
    except train.ControllerError as error:
        # By name: the class is not public. Ray's text guesses at causes and names settings of its own.
        if type(error.controller_failure).__name__ != "WorkerGroupStartupTimeoutError":
            raise
        raise LaunchError(describe_no_places(attempt, os.environ[START_TIMEOUT])) from error
    return ()


def _train_loop(loop_config: dict) -> None:
    """The function that Ray Train calls on every rank."""
    notes = Path(loop_config["notes"])
    if loop_config["on_cluster"]:
        check_shared(notes)
    run_rank(WorkerJob(**loop_config["job"]), notes, load_ray_train().report)


def _describe_failures(by_rank: Mapping[int, Exception], notes: Path) -> tuple[WorkerFailure, ...]:
    """What the ranks wrote down, and in Ray's words what became of those that could not; the likely cause first."""
    written = read_failures(notes)
    known = {failure.rank for failure in written}
    told = [_as_failure(rank, error) for rank, error in by_rank.items() if rank not in known]
    return order_by_cause([*written, *told])


def _as_failure(rank: int, error: Exception) -> WorkerFailure:
    """Ray hands over the exception of a rank as it was raised, and errors of its own for a process that is gone."""
    if type(error).__module__.startswith("ray."):
        return WorkerFailure(rank, "", str(error), "", time.time())
    return describe_error(rank, error)


def _say(folder: Path, message: str) -> None:
    with (folder / SAID).open("a", encoding="utf-8") as file:
        file.write(message.replace("\n", " ") + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
