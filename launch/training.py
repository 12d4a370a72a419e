"""Training through Ray in the foreground, on a private Ray or from inside a cluster: what `t4p launch` does."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console

from launch.attempts import run_job, title_of_attempt
from launch.errors import LaunchError
from launch.jobs.spec import world_sizes
from launch.outcome import JobOutcome, WorkerFailure, describe_cause, worth_restarting
from launch.placement import worker_resources
from launch.processes.own_files import open_own
from launch.processes.stop_signals import Stopped
from launch.progress import follow_trainings
from launch.ray_package import require_ray
from launch.worker import Report, WorkerJob
from t4p.config.kinds import config_of_task
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError
from t4p.runs.checkpoint import newest_checkpoint, step_of
from t4p.runs.going_on import how_it_goes_on
from t4p.runs.lock import describe_taken, is_locked
from t4p.tasks.afterwards import is_finished, newest_marked, random_towers

QUOTED_BYTES = 20_000  # of the end of a log, which may be large: it gathers every launch
PROOF_BYTES = 8192  # more than one block


def launch_training(
    config: JobConfig, num_workers: int, console: Console | None = None, address: str | None = None
) -> None:
    """Run a job with `num_workers` workers and wait for it; begin again where something was lost.

    Args:
        num_workers: ranks; on a machine with GPUs each has one, otherwise they share the cores.
        console: where the progress goes; standard output by default.
        address: None for a private Ray on this machine; "auto" for the Ray cluster that this process runs in.

    Raises:
        ConfigError: the call cannot work. Nothing has been started where this could be seen beforehand.
        MissingExtraError: Ray is not installed.
        LaunchError: a worker failed, or something was lost more often than `cluster.max_restarts` puts up with; the
            full story is in `error.txt` in the run folder.
        SystemExit: the command was told to stop (Ctrl-C, SIGTERM); the ranks had `train.save_on_stop` seconds to save,
            and every process has been ended.
    """
    check_call(config, num_workers, address)
    require_ray()
    console = console or Console()
    run_dir = Path(config.run.dir).absolute()
    max_restarts = config.cluster.max_restarts

    def say(message: str) -> None:
        console.print(message, soft_wrap=True, highlight=False, markup=False)

    def before_restart(outcome: JobOutcome, lost: str) -> WorkerJob:
        write_story(outcome, run_dir / "error.txt")
        step = newest_step(run_dir / "checkpoints")
        whence = f"from step {step}" if step else "from the beginning"
        say(f"{lost}; restart {outcome.attempt} of {max_restarts} goes on {whence}")
        return job_of(config_of_restart(config), num_workers)

    say(f"run folder: {config.run.dir}")
    if (sentence := random_towers(config)) is not None:
        say(sentence)
    try:
        with follow_trainings({"": config}, console, "starting Ray") as update:
            outcome = run_job(
                job_of(config, num_workers),
                update,
                keep_logs=run_dir / "logs",
                address=address,
                max_restarts=max_restarts,
                before_restart=before_restart,
                say=say,
                stop_patience=config.train.save_on_stop,
            )
    except Stopped as stop:
        if is_finished(config):
            return
        say(f"stopped by {stop}: {how_it_goes_on(run_dir / 'checkpoints', config.train.resume)}")
        raise SystemExit(128 + stop.signal_number) from None
    raise_failure(outcome, num_workers, run_dir, config.train.resume)


def check_call(config: JobConfig, num_workers: int, address: str | None = None) -> None:
    """Refuse what cannot work before anything is started.

    Raises:
        ConfigError: names the numbers that do not fit, or the run folder that is taken, or cannot be written or shared.
    """
    world_sizes(config, num_workers)
    if address is not None and not Path(config.run.dir).is_absolute():
        raise ConfigError(
            f"run.dir is {config.run.dir}, which is another folder on every node of a cluster (and gone with the job); "
            "set it to the absolute path of a folder that all nodes share"
        )
    run_dir = Path(config.run.dir).absolute()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=run_dir) as file:
            file.write(bytes(PROOF_BYTES))  # a full disk has room for an empty file
            file.flush()
            os.fsync(file.fileno())  # a network file system may not say so before
        # On a cluster rank 0 alone asks: its node is another, and not every shared file system locks between nodes.
        taken = address is None and is_locked(run_dir)
    except OSError as error:
        raise ConfigError(
            f"run.dir {run_dir}: cannot be written ({error}); set run.dir to a folder that can"
        ) from error
    if taken:
        raise ConfigError(describe_taken(run_dir))


def job_of(config: JobConfig, num_workers: int) -> WorkerJob:
    """A training as a job for a worker group."""
    worker = worker_resources(config.cluster)
    return WorkerJob(
        "launch.training:training_worker",
        config.model_dump(mode="json"),
        num_workers,
        cpus_per_worker=worker.num_cpus,
        gpus_per_worker=worker.num_gpus,
    )


def config_of_restart(config: JobConfig) -> JobConfig:
    """The configuration that goes on where a lost attempt ended.

    With `train.resume` never, or naming a checkpoint, the lost attempt may have left checkpoints of its own, and those
    are newer. Where it left none, a named checkpoint is still the place to begin.
    """
    resume = config.train.resume
    named = resume not in ("auto", "never")
    if named and newest_checkpoint(Path(config.run.dir).absolute() / "checkpoints")[0] is None:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": "auto"})})


def newest_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint with a marker, 0 without any."""
    newest = newest_marked(checkpoints)
    return 0 if newest is None else step_of(newest)


def training_worker(worker_config: dict[str, Any], report: Report) -> None:
    """What every rank of a launched training does."""
    from t4p.runs.logs import StepRecord
    from t4p.tasks.job import run_watched

    config = config_of_task(worker_config)

    def on_step(record: StepRecord) -> None:
        report(record.step, config.train.num_steps, record.as_dict())

    run_watched(config, on_step=on_step)


def raise_failure(outcome: JobOutcome, num_workers: int, run_dir: Path, resume: str = "auto") -> None:
    """Turn the outcome of a failed job into one clear error; write the whole story to `error.txt`.

    Raises:
        ConfigError: the first failing rank found a mistake in the configuration.
        LaunchError: anything else that is not success.
    """
    if not outcome.failures and not outcome.problem:
        return
    where = write_story(outcome, run_dir / "error.txt")
    if outcome.failures and outcome.failures[0].exit_status == ConfigError.exit_status:
        raise ConfigError(outcome.failures[0].message)
    what = outcome.problem
    if outcome.failures and not what:
        first = outcome.failures[0]
        what = f"rank {first.rank} of {num_workers} failed: {describe_cause(first)}"
    if worth_restarting(outcome) is not None and outcome.attempt > 1:
        what = (
            f"gave up after {outcome.attempt} attempts (cluster.max_restarts is {outcome.attempt - 1}); "
            f"{how_it_goes_on(run_dir / 'checkpoints', resume)}. The last attempt: {what}"
        )
    raise LaunchError(f"{what}\n{where}")


def write_story(outcome: JobOutcome, path: Path) -> str:
    """Write what every rank says, after the stories of earlier attempts and launches.

    A full disk must not hide why a job failed.

    Returns:
        Where to find it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        story = outcome.problem_traceback + "".join(_story(failure, path.parent) for failure in outcome.failures)
        with open_own(path, "ab") as file:
            file.write(
                f"{title_of_attempt(outcome.attempt)}\n{outcome.problem}\n{story}".encode(errors="backslashreplace")
            )
    except OSError as error:
        return f"the whole story could not be written to {path}: {error.strerror}"
    return f"the whole story: {path}"


def _story(failure: WorkerFailure, run_dir: Path) -> str:
    log = run_dir / "logs" / f"rank-{failure.rank}.log"
    try:
        output = _end_of(log)
    except OSError as error:
        output = f"(none: {error.strerror})\n"
    return (
        f"==== rank {failure.rank}: {failure.error_type or 'lost'}\n{failure.traceback or failure.message}\n"
        f"---- the end of its output\n{output}\n"
    )


def _end_of(log: Path) -> str:
    with open_own(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - QUOTED_BYTES))
        return file.read().decode("utf-8", errors="replace")
