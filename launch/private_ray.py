"""A Ray of our own for one job: started with it, watched from outside, gone when it ends, however it ends."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from launch.errors import LaunchError
from launch.processes import end_processes
from launch.worker_group import JobOutcome, WorkerJob, log_path, read_failures, read_outcome, write_job

# Ray's sockets lie some 65 characters below its folder, and a path of AF_UNIX ends at 107.
LONGEST_FOLDER = 40
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """The user or the system asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number = signal_number


def run_job(job: WorkerJob, on_tick: Callable[[], None], keep_logs: Path | None = None) -> JobOutcome:
    """Run a job on a private Ray and wait for it. No process and no file of that Ray is left afterwards.

    Args:
        on_tick: called a few times per second while the job runs.
        keep_logs: folder for `rank-0.log`, ...; made when there is something to keep.

    Returns:
        The outcome; with failures where ranks failed.

    Raises:
        LaunchError: Ray could not be started, or ended without an outcome.
        Stopped: on SIGINT, SIGTERM or SIGHUP, after everything has been ended.
    """
    with _private_folder() as folder, _caretaker(folder), _stop_signals_raise():
        try:
            write_job(folder, job)
            status = _watch_driver(folder, on_tick)
            outcome = read_outcome(folder) or _outcome_of_lost_driver(folder, status)
        finally:
            with _stop_signals_ignored():
                end_processes(folder)
                if keep_logs is not None:
                    _keep(folder, job.num_workers, keep_logs)
    return outcome


def _watch_driver(folder: Path, on_tick: Callable[[], None]) -> int:
    """Start the process that owns Ray, wait until it ends, return its exit status."""
    with (folder / "driver.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "launch.ray_driver", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_driver_environment(folder),
            start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone
        )
    while True:
        try:
            return driver.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            on_tick()


def _driver_environment(folder: Path) -> dict[str, str]:
    """The caller's environment (AWS_* included), with what a private Ray needs; workers inherit it."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {
        **os.environ,
        # Any local user could otherwise submit work to it. Left to itself Ray writes a token to the home directory.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of the configuration mean the same in the workers
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a failure and the end of the job are seen
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line twice where output goes to a file
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # one machine: nobody takes a node away
        "PYTHONUNBUFFERED": "1",
    }


def _outcome_of_lost_driver(folder: Path, status: int) -> JobOutcome:
    """What can be said when the driver process ended without an outcome."""
    failures = read_failures(folder)
    if failures:
        return JobOutcome(failures=failures)
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    log = (folder / "driver.log").read_text(encoding="utf-8", errors="replace")
    raise LaunchError(
        f"the process that runs Ray {how} before the job was over; its last lines:\n{last_lines(log, 15)}"
    )


def last_lines(text: str, count: int) -> str:
    """The last `count` lines that are not blank."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def _keep(folder: Path, num_workers: int, keep_logs: Path) -> None:
    with suppress(OSError):  # this runs while errors pass through, and must not take their place
        for rank in range(num_workers):
            log = log_path(folder, rank)
            if log.exists():
                keep_logs.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(log, keep_logs / log.name)


@contextmanager
def _private_folder() -> Iterator[Path]:
    parent = tempfile.gettempdir()
    if len(parent) > LONGEST_FOLDER - len("/t4p-12345678"):
        parent = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="t4p-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _caretaker(folder: Path) -> Iterator[None]:
    """A process that ends what belongs to the folder when this one was killed and cannot."""
    caretaker = subprocess.Popen(
        [sys.executable, "-m", "launch.processes", str(folder)],
        stdin=subprocess.PIPE,  # closes when this process dies
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        caretaker.kill()
        caretaker.communicate()


@contextmanager
def _stop_signals_raise() -> Iterator[None]:
    def stop(signal_number: int, frame: FrameType | None) -> None:
        raise Stopped(signal_number)

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _stop_signals_ignored() -> Iterator[None]:
    """For the seconds in which processes are ended: a second Ctrl-C must not leave half of them behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
