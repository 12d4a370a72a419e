"""The lock of a run folder: one run at a time. Loads nothing, so that a launch can ask before it starts anything."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from t4p.errors import ConfigError

LOCK = ".lock"


def take_lock(run_dir: Path) -> IO[str]:
    """Lock an existing run folder until the file is closed, or this process ends.

    Raises:
        BlockingIOError: another process holds it (`describe_taken` says so to a user).
        OSError: the folder cannot be written.
        ConfigError: this system has no such locks.
    """
    lock = (run_dir / LOCK).open("w")
    try:
        _lock_now(lock)
    except (OSError, ConfigError):
        lock.close()
        raise
    return lock


def is_locked(run_dir: Path) -> bool:
    """Whether another process holds the lock of this folder. Leaves no lock, and no file for one."""
    try:
        with (run_dir / LOCK).open("r+") as lock:
            _lock_now(lock)  # closing gives it back
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def describe_taken(run_dir: Path) -> str:
    """What to say to whoever wants a folder that another run holds."""
    return f"run.dir {run_dir}: another run is in it; wait for its end, or choose another run.dir"


def _lock_now(lock: IO[str]) -> None:
    try:
        import fcntl
    except ImportError as error:
        raise ConfigError(
            f"a run locks its folder with fcntl, which this system does not have ({error}); train on Linux, macOS or "
            "under WSL"
        ) from error
    # lockf, not flock: loader processes would inherit that one, and outlive a killed run by some seconds.
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
