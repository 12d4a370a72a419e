"""Pre-training on a private Ray in the foreground: `t4p launch pretrain CONFIG --workers N`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console

from launch.errors import LaunchError
from launch.private_ray import Stopped, run_job
from launch.progress import RunProgress
from launch.worker_group import JobOutcome, Report, WorkerFailure, WorkerJob
from t4p.config import PretrainConfig
from t4p.errors import ConfigError

# Errors of these packages are written for users: their message is the whole story, the class name adds nothing.
OWN_PACKAGES = ("shards.", "t4p.", "launch.")
# Of these, the ones that blame the call (exit status 2) and not the run.
WRONG_CALLS = (
    "t4p.errors.ConfigError",
    "t4p.models.dense_clip.ClipError",
    "shards.schema.CallError",
    "shards.store.MissingBucketError",
)


def launch_pretrain(config: PretrainConfig, num_workers: int, console: Console | None = None) -> None:
    """Run pre-training with `num_workers` workers on this machine and wait for it.

    Args:
        num_workers: ranks; on a machine with GPUs each has one, otherwise they share the cores.
        console: where the progress goes; standard output by default.

    Raises:
        ConfigError: the call cannot work. Nothing has been started where this could be seen beforehand.
        LaunchError: a worker failed or was lost; the full story is in `error.txt` in the run folder.
        SystemExit: the command was told to stop (Ctrl-C, SIGTERM); every process has been ended.
    """
    check_call(config, num_workers)
    console = console or Console()
    run_dir = Path(config.run.dir).absolute()
    job = WorkerJob("launch.trainer:pretrain_worker", config.model_dump(mode="json"), num_workers)
    console.print(f"run folder: {config.run.dir}", soft_wrap=True, highlight=False)
    try:
        with RunProgress(run_dir / "metrics.jsonl", config.train.num_steps, console) as progress:
            outcome = run_job(job, progress.update, keep_logs=run_dir / "logs")
    except Stopped as stop:
        console.print(f"stopped by {stop}; the same command resumes from the last checkpoint", highlight=False)
        raise SystemExit(128 + stop.signal_number) from None
    raise_failure(outcome, num_workers, run_dir)


def check_call(config: PretrainConfig, num_workers: int) -> None:
    """Refuse what cannot work before anything is started.

    Raises:
        ConfigError: names the numbers that do not fit, or the run folder that cannot be written.
    """
    if num_workers < 1:
        raise ConfigError(f"--workers is {num_workers}; at least 1 is wanted")
    if num_workers > config.train.global_batch_size:
        raise ConfigError(
            f"--workers is {num_workers}, but train.global_batch_size is {config.train.global_batch_size}: every "
            "worker takes at least one frame of each batch; use fewer workers, or a larger batch"
        )
    run_dir = Path(config.run.dir).absolute()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise ConfigError(
            f"run.dir {run_dir}: cannot be written ({error}); set run.dir to a folder that can"
        ) from error


def pretrain_worker(worker_config: dict[str, Any], report: Report) -> None:
    """What every rank of a launched pre-training does."""
    from t4p.tasks.pretrain import run
    from t4p.train.logging import StepRecord

    config = PretrainConfig.model_validate(worker_config)

    def on_step(record: StepRecord) -> None:
        report(record.step, config.train.num_steps, record.as_dict())

    run(config, on_step=on_step)


def raise_failure(outcome: JobOutcome, num_workers: int, run_dir: Path) -> None:
    """Turn the outcome of a failed job into one clear error; write the whole story to `error.txt`.

    Raises:
        ConfigError: the first failing rank found a mistake in the configuration.
        LaunchError: anything else that is not success.
    """
    if not outcome.failures and not outcome.problem:
        return
    where = _write_story(outcome, run_dir / "error.txt")
    if outcome.problem:
        raise LaunchError(f"{outcome.problem}\n{where}")
    first = outcome.failures[0]
    if first.error_type in WRONG_CALLS:
        raise ConfigError(first.message)
    raise LaunchError(f"rank {first.rank} of {num_workers} failed: {_cause(first)}\n{where}")


def _write_story(outcome: JobOutcome, path: Path) -> str:
    """Write what every rank says; returns where to find it. A full disk must not hide why the job failed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        story = outcome.problem_traceback + "".join(_story(failure, path.parent) for failure in outcome.failures)
        path.write_text(story, encoding="utf-8")
    except OSError as error:
        return f"the whole story could not be written to {path}: {error.strerror}"
    return f"the whole story: {path}"


def _cause(failure: WorkerFailure) -> str:
    if not failure.error_type and "low on memory" in failure.message:
        return "Ray ended it because the machine ran out of memory; use fewer workers or a smaller batch"
    if not failure.error_type:
        return (
            "its process was killed, or crashed without a Python error (the system's memory running out does that too)"
        )
    if failure.error_type.startswith(OWN_PACKAGES):
        return failure.message
    return f"{failure.error_type.removeprefix('builtins.')}: {failure.message}"


def _story(failure: WorkerFailure, run_dir: Path) -> str:
    log = run_dir / "logs" / f"rank-{failure.rank}.log"
    output = log.read_text(encoding="utf-8", errors="replace")[-20_000:] if log.exists() else "(none)\n"
    return (
        f"==== rank {failure.rank}: {failure.error_type or 'lost'}\n{failure.traceback or failure.message}\n"
        f"---- the end of its output\n{output}\n"
    )
