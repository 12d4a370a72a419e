"""What a launched job is, what became of it, and what each worker of the group does.

The job and its outcome cross process boundaries as JSON files in the folder of the private Ray, so that the cause of a
failure survives whatever kills the processes in between.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Called by a worker after every step with its number (from 1), the last one's number, and metrics for Ray.
Report = Callable[[int, int, Mapping[str, float]], None]

# A report waits until Ray's controller, which looks every half second, took the one before. Every hundredth step costs
# nothing measurable even at 10 ms per step; whoever wants every step reads metrics.jsonl.
REPORT_EVERY = 100

# What gloo and NCCL say on a rank whose peer went away.
LOST_PEER = re.compile("closed by peer|reset by peer|broken pipe|remote process exited", re.IGNORECASE)


@dataclass(frozen=True)
class WorkerJob:
    """A function to run on every rank of a worker group.

    Attributes:
        worker: "package.module:function", called as function(worker_config, report) on every rank.
        worker_config: its argument, JSON.
        num_workers: the world size.
    """

    worker: str
    worker_config: dict[str, Any]
    num_workers: int


@dataclass(frozen=True)
class WorkerFailure:
    """How one rank failed.

    Attributes:
        error_type: qualified name of the exception's class; "" where the process was lost without one.
        message: of the exception, or what Ray says about the lost process.
        traceback: as Python prints it; "" where there is none.
        time: seconds since the epoch.
    """

    rank: int
    error_type: str
    message: str
    traceback: str
    time: float


@dataclass(frozen=True)
class JobOutcome:
    """What the driver process leaves behind when it ends by itself.

    Attributes:
        failures: of ranks, the likely cause first; empty after success.
        problem: what went wrong outside the workers; "" where nothing did.
        problem_traceback: as Python prints it.
    """

    failures: tuple[WorkerFailure, ...] = field(default=())
    problem: str = ""
    problem_traceback: str = ""


def write_job(folder: Path, job: WorkerJob) -> None:
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(folder: Path) -> WorkerJob:
    return WorkerJob(**json.loads((folder / "job.json").read_text(encoding="utf-8")))


def write_outcome(folder: Path, outcome: JobOutcome) -> None:
    partial = folder / "outcome.json.partial"
    partial.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
    partial.replace(folder / "outcome.json")


def read_outcome(folder: Path) -> JobOutcome | None:
    """None where the driver process ended before it could say anything."""
    path = folder / "outcome.json"
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    failures = tuple(WorkerFailure(**failure) for failure in fields.pop("failures"))
    return JobOutcome(failures=failures, **fields)


def read_failures(folder: Path) -> tuple[WorkerFailure, ...]:
    """What the ranks wrote down before they failed, the likely cause first."""
    files = folder.glob("rank-*.failure.json")
    failures = [WorkerFailure(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return order_by_cause(failures)


def order_by_cause(failures: Sequence[WorkerFailure]) -> tuple[WorkerFailure, ...]:
    """The likely cause first: an error of its own, then a lost process, then ranks that merely lost their peer."""

    def key(failure: WorkerFailure) -> tuple[int, float]:
        if not failure.error_type:
            return 1, failure.time
        return (2 if LOST_PEER.search(failure.message) else 0), failure.time

    return tuple(sorted(failures, key=key))


def log_path(folder: Path, rank: int) -> Path:
    """Where the output of a rank goes."""
    return folder / f"rank-{rank}.log"


def run_rank(job: WorkerJob, folder: Path, report_to_ray: Callable[[dict[str, float]], None]) -> None:
    """Run the job on this process, a worker that Ray Train has set up: output to a file, the cause of a failure too.

    Args:
        report_to_ray: blocks until every rank called it and the controller took the previous one.
    """
    rank = int(os.environ["RANK"])
    _redirect_output(log_path(folder, rank))

    def report(step: int, last_step: int, metrics: Mapping[str, float]) -> None:
        if step % REPORT_EVERY == 0 or step == last_step:
            report_to_ray(dict(metrics))

    try:
        module_name, _, function_name = job.worker.partition(":")
        worker = getattr(importlib.import_module(module_name), function_name)
        worker(job.worker_config, report)
    except BaseException as error:
        failure = WorkerFailure(
            rank=rank,
            error_type=f"{type(error).__module__}.{type(error).__qualname__}",
            message=str(error),
            traceback=traceback.format_exc(),
            time=time.time(),
        )
        partial = folder / f"rank-{rank}.failure.partial"
        partial.write_text(json.dumps(asdict(failure)), encoding="utf-8")
        partial.replace(folder / f"rank-{rank}.failure.json")
        raise


def _redirect_output(path: Path) -> None:
    """Send both streams, C++ code's included, to a file that a crash cannot lose."""
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
