"""Running a job through Ray, from outside: in processes of their own, watched, and ended with all that they started.

Each attempt is one process (launch.driver) with a folder of its own. Without an address it owns a private Ray, of
which nothing is left afterwards; with one it is a guest of a cluster, where Ray ends the workers of a driver that is
gone, and nothing but the driver is ended from here.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from launch.driver import CONNECTED, SAID, START_TIMEOUT, UNWRITABLE
from launch.errors import writing_in
from launch.outcome import JobOutcome, read_failures, read_outcome, same_death_twice, worth_restarting
from launch.processes.caretaker import describe_end, end_processes, last_lines
from launch.processes.environment import importable
from launch.processes.own_files import open_own
from launch.processes.private_folder import caretaker, private_folder
from launch.processes.stop_signals import Stopped, StopSignals
from launch.ray_package import require_ray
from launch.worker import STEPPED, STOP, Attempt, WorkerJob, log_path, write_attempt

DRIVER_LOG = "driver.log"
START_PATIENCE_S = "600"  # for places on a busy cluster, and for Ray's workers to start on a busy machine


def run_job(
    job: WorkerJob,
    on_tick: Callable[[], None],
    keep_logs: Path | None = None,
    address: str | None = None,
    max_restarts: int = 0,
    before_restart: Callable[[JobOutcome, str], WorkerJob] | None = None,
    say: Callable[[str], None] = lambda message: None,
    stop_patience: float = 0.0,
) -> JobOutcome:
    """Run a job and wait for it; begin again where something was lost and nothing was wrong.

    Restarts are counted over the whole call, and progress since the last one does not give any back: so the
    configuration says what a run may cost at most, and a leak that kills a worker every thousand steps comes to light
    instead of going on at twice the price. Launching again is a new budget, and resumes.

    Args:
        on_tick: called a few times per second while the job runs.
        keep_logs: folder for `rank-0.log`, ..., which are added to; made when there is something to keep. On a cluster
            the ranks write there (in a folder per attempt until it ends), so all nodes must share it.
        address: None for a private Ray, "auto" for the cluster that this process runs in.
        max_restarts: how often a lost attempt is followed by another.
        before_restart: told of the lost attempt, and what was lost; gives the job to go on with (default: the same).
        say: told in one line what the job waits for.
        stop_patience: seconds that ranks which have made a step get, to end by themselves, when the command is told to
            stop; a second signal ends them at once. 0 ends them at the first.

    Returns:
        The outcome of the last attempt; with failures where ranks failed.

    Raises:
        LaunchError: the disk is full.
        MissingExtraError: Ray is not installed.
        Stopped: on SIGINT, SIGTERM or SIGHUP unless it was ignored, after everything has been ended.
    """
    require_ray()
    if address is not None and keep_logs is None:
        raise ValueError("on a cluster the ranks need a shared folder for their logs: keep_logs")
    with StopSignals() as stops:
        previous: JobOutcome | None = None
        for number in count(1):
            attempt = _run_attempt(job, number, address, on_tick, keep_logs, say, stops, stop_patience)
            outcome = replace(attempt, attempt=number)
            lost = worth_restarting(outcome)
            if stops.asked is not None and (lost is not None or not (outcome.failures or outcome.problem)):
                raise Stopped(stops.asked)
            if lost is None or number > max_restarts:
                return outcome
            if (again := same_death_twice(outcome, previous)) is not None:
                return replace(outcome, problem=again, problem_is_loss=False)
            previous = outcome
            stops.raise_waiting()
            if before_restart is not None:
                job = before_restart(outcome, lost)
    raise AssertionError("count() has no end")


def _run_attempt(
    job: WorkerJob,
    number: int,
    address: str | None,
    on_tick: Callable[[], None],
    keep_logs: Path | None,
    say: Callable[[str], None],
    stops: StopSignals,
    stop_patience: float,
) -> JobOutcome:
    with private_folder() as folder, caretaker(folder):
        # Ranks on other nodes do not see the folder. A folder per attempt: a straggler of a lost one spoils no other.
        notes = folder if address is None or keep_logs is None else keep_logs / folder.name
        try:
            with writing_in(notes.parent, "TMPDIR" if notes == folder else "run.dir"):
                notes.mkdir(parents=True, exist_ok=True)
            with writing_in(folder.parent):
                write_attempt(folder, Attempt(job, number, address, notes))
                environment = _environment(folder, address)
                open_own(folder / DRIVER_LOG, "ab").close()
            with stops.passed_on(lambda: stop_patience > 0 and _pass_on(notes)):
                status = _watch_driver(folder, environment, on_tick, say, stops, stop_patience)
            outcome = read_outcome(folder) or _outcome_of_lost_driver(folder, notes, status)
            return replace(outcome, stepped=(notes / STEPPED).exists())
        finally:
            with stops.held():
                end_processes(folder)
                if keep_logs is not None:
                    _keep(notes, job.num_workers, keep_logs, number, say)
                if notes != folder:
                    shutil.rmtree(notes, ignore_errors=True)


def _pass_on(notes: Path) -> bool:
    """Ask the ranks to save and end, if they have made a step: before, there is nothing to save."""
    if not (notes / STEPPED).exists():
        return False
    try:
        (notes / STOP).touch()
    except OSError:
        return False
    return True


def _watch_driver(
    folder: Path,
    environment: dict[str, str],
    on_tick: Callable[[], None],
    say: Callable[[str], None],
    stops: StopSignals,
    stop_patience: float,
) -> int:
    """Start the process that talks to Ray, wait until it ends, return its exit status.

    Raises:
        Stopped: the ranks were asked to end, and did not in time.
    """
    with open_own(folder / DRIVER_LOG, "wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "launch.driver", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone
        )
    num_said, said_asked = 0, False
    while True:
        try:
            return driver.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            on_tick()
            stops.raise_when_over(stop_patience)
            if stops.asked is not None and not said_asked:
                said_asked = True
                say(
                    f"{signal.Signals(stops.asked).name}: saving a last checkpoint, for at most {stop_patience:g} s "
                    "(train.save_on_stop); once more ends at once"
                )
            if (folder / SAID).exists():
                lines = (folder / SAID).read_text(encoding="utf-8").splitlines()
                for line in lines[num_said:]:
                    say(line)
                num_said = len(lines)


def _environment(folder: Path, address: str | None) -> dict[str, str]:
    """The caller's environment (AWS_* included), with what Ray needs; the workers of a private Ray inherit it."""
    environment = {
        START_TIMEOUT: START_PATIENCE_S,
        **importable(os.environ),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration mean the same in the workers
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a failure and the end of the job are seen
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice where output goes to a file
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would wait for workers to finish; ours begin again
        "PYTHONUNBUFFERED": "1",
    }
    if address is not None:
        return environment
    token = folder / "token"
    token.touch(mode=0o600, exist_ok=False)
    token.write_text(secrets.token_hex(32))
    return environment | {
        # Any local user could otherwise submit work to it. Left to itself Ray writes a token to the home directory.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray takes 127.0.0.1 for another address that others can reach
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",  # nobody scrapes them
        "RAY_prestart_worker_first_driver": "0",  # a worker in advance, for work of the driver, which has none
        # Ray's own 15 leaves training 3 % of a core beside anything else: a start of 12 s takes minutes.
        "RAY_worker_niceness": environment.get("RAY_worker_niceness", "0"),
    }


def _outcome_of_lost_driver(folder: Path, notes: Path, status: int) -> JobOutcome:
    """What can be said when the driver process ended without an outcome.

    It is taken for lost when a signal killed it, or when it had come as far as Ray: Ray ends a driver whose raylet is
    gone. One that ended before would do so again, and so would one whose outcome found no room on the disk.
    """
    failures = read_failures(notes)
    if failures:
        return JobOutcome(failures=failures)
    if status == UNWRITABLE:
        return JobOutcome(
            problem=f"{folder.parent}: what became of the job cannot be written there, so it is not known; make room "
            "there, or set TMPDIR to another folder. The same command goes on from what is saved"
        )
    with open_own(folder / DRIVER_LOG, "rb") as file:
        log = file.read().decode("utf-8", errors="replace")
    how = describe_end(status)
    return JobOutcome(
        problem=f"the process that runs Ray {how} before the job was over\nits last lines:\n{last_lines(log, 15)}",
        problem_is_loss=status < 0 or (folder / CONNECTED).exists(),
    )


def title_of_attempt(number: int) -> str:
    """What an attempt that ends now is called in files that gather those of every launch."""
    return f"======== attempt {number} of launch {os.getpid()}, ended {datetime.now():%Y-%m-%d %H:%M:%S}"


def _keep(notes: Path, num_workers: int, keep_logs: Path, number: int, say: Callable[[str], None]) -> None:
    """Add the logs of an attempt to those of the run; tell of each that cannot be."""
    for rank in range(num_workers):
        log, kept_log = log_path(notes, rank), keep_logs / log_path(notes, rank).name
        try:
            with open_own(log, "rb") as source:
                keep_logs.mkdir(parents=True, exist_ok=True)
                # Appended: what is there may be of a launch that still runs, and refused this one.
                with open_own(kept_log, "ab") as kept:
                    kept.write(f"{title_of_attempt(number)}\n".encode())
                    shutil.copyfileobj(source, kept)
        except FileNotFoundError:
            continue  # it never came as far
        except OSError as error:  # this runs while errors pass through, and must not take their place
            with suppress(OSError):
                say(f"{kept_log}: the output of rank {rank} could not be added ({error.strerror})")
