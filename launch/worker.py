"""What a launched job is, and what each worker of its group does."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.outcome import WorkerFailure, follows_loss, write_failure
from launch.processes.own_files import open_own
from shards.errors import UserError
from t4p.heartbeat import at_hang
from t4p.runs.checkpoint import SHARED_FOLDER_PATIENCE
from t4p.stop import ask

# Called by a worker after every step with its number (from 1), the last one's number, and metrics for Ray.
Report = Callable[[int, int, Mapping[str, float]], None]

# A report waits until Ray's controller, which looks every half second, took the one before. Every hundredth step costs
# nothing measurable even at 10 ms per step; whoever wants every step reads metrics.jsonl.
REPORT_EVERY = 100
STOP = "stop"  # a file of the notes, written by the command: save after the next step, and end
LOOK_EVERY = 1.0  # seconds between two looks for it
STEPPED = "stepped"  # a file of the notes that tells: a step has been made in this attempt


@dataclass(frozen=True)
class WorkerJob:
    """A function to run on every rank of a worker group.

    Attributes:
        worker: "package.module:function", called as function(worker_config, report) on every rank.
        worker_config: its argument, JSON.
        num_workers: the world size.
        cpus_per_worker: that a worker reserves on a cluster. On a private Ray the workers share what there is.
        gpus_per_worker: 0 or 1, on a cluster. On a private Ray each worker has one if the machine has any.
    """

    worker: str
    worker_config: dict[str, Any]
    num_workers: int
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0


@dataclass(frozen=True)
class Attempt:
    """One go at a job: what the process that runs Ray is told.

    Attributes:
        number: counting from 1; the later ones begin again after something was lost.
        address: None for a private Ray, "auto" for the cluster that this process runs in.
        notes: folder where the ranks write their output and their failures.
    """

    job: WorkerJob
    number: int
    address: str | None
    notes: Path


def write_attempt(folder: Path, attempt: Attempt) -> None:
    fields = asdict(attempt) | {"notes": str(attempt.notes)}
    (folder / "attempt.json").write_text(json.dumps(fields), encoding="utf-8")


def read_attempt(folder: Path) -> Attempt:
    fields = json.loads((folder / "attempt.json").read_text(encoding="utf-8"))
    return Attempt(WorkerJob(**fields.pop("job")), notes=Path(fields.pop("notes")), **fields)


def log_path(notes: Path, rank: int) -> Path:
    """Where the output of a rank goes."""
    return notes / f"rank-{rank}.log"


def check_shared(notes: Path, patience: float = SHARED_FOLDER_PATIENCE) -> None:
    """Wait on a node of a cluster until the folder for notes shows up: the head made it inside the run folder.

    Without this proof the ranks may well agree among themselves on a folder that the head does not see, and every log,
    failure and checkpoint lies where nobody looks for it.

    Args:
        patience: seconds; a network file system may be slow to show a new folder.

    Raises:
        LaunchError: it did not show up.
    """
    end = time.monotonic() + patience
    while not notes.is_dir():
        if time.monotonic() > end:
            raise LaunchError(
                f"run.dir: this node ({socket.gethostname()}) does not see {notes}, which the head made; set it to a "
                "folder that all nodes share, the head included"
            )
        time.sleep(0.1)


def require_working_directory() -> None:
    """See that the folder of this process is still there: without it importing torch dies in words about oneMKL.

    Raises:
        LaunchError: it is gone.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise LaunchError(
            f"the working directory of this job was removed under it on {socket.gethostname()}; several raylets of one "
            "machine that share a session folder do that: start each with a --temp-dir of its own, or one per machine"
        ) from error


def run_rank(job: WorkerJob, notes: Path, report_to_ray: Callable[[dict[str, float]], None]) -> None:
    """Run the job on this process, a worker that Ray Train has set up: output to a file, the cause of a failure too.

    Where the folder for notes cannot be written (a node that does not share it), Ray keeps the output and passes the
    exception on.

    Args:
        report_to_ray: blocks until every rank called it and the controller took the previous one.
    """
    rank = int(os.environ["RANK"])
    _redirect_output(log_path(notes, rank))

    stepped, looked_at = False, time.monotonic()

    def report(step: int, last_step: int, metrics: Mapping[str, float]) -> None:
        nonlocal stepped, looked_at
        if rank == 0 and time.monotonic() >= looked_at + LOOK_EVERY:
            looked_at = time.monotonic()
            if (notes / STOP).exists():
                ask(signal.SIGTERM)  # the others learn it with the sums of the next step
        if not stepped:
            with suppress(OSError):
                (notes / STEPPED).touch()
            stepped = True
        if step % REPORT_EVERY == 0 or step == last_step:
            report_to_ray(dict(metrics))

    def write_down(error: BaseException) -> None:
        with suppress(OSError):
            write_failure(notes, describe_error(rank, error))

    at_hang(write_down)  # nobody catches that: the process is ended
    try:
        require_working_directory()
        module_name, _, function_name = job.worker.partition(":")
        worker = getattr(importlib.import_module(module_name), function_name)
        worker(job.worker_config, report)
    except BaseException as error:
        write_down(error)
        raise


def describe_error(rank: int, error: BaseException) -> WorkerFailure:
    """A rank's exception, ready to be written down."""
    return WorkerFailure(
        rank=rank,
        error_type=f"{type(error).__module__}.{type(error).__qualname__}",
        message=str(error),
        traceback="".join(traceback.format_exception(error)),
        time=time.time(),
        follows_loss=follows_loss(error),
        for_users=isinstance(error, UserError),
        exit_status=error.exit_status if isinstance(error, UserError) else 1,
    )


def _redirect_output(path: Path) -> None:
    """Send both streams, C++ code's included, to a file that a crash cannot lose."""
    try:
        log = open_own(path, "ab")
    except OSError as error:
        sys.stderr.write(f"{path}: cannot be written from here ({error}); the output of this rank stays with Ray\n")
        return
    with log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
