"""Finding and ending the processes of one private folder (of a private Ray, or commands side by side), and no others.

Run as a program it is the caretaker of such a folder: it waits until its standard input closes, which happens
when the command that started it dies, even by SIGKILL, and then ends everything. It is no part of Ray: a process that
is connected to Ray may be ended by it as soon as the raylet is gone, in the middle of ending the rest.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.errors import needs_extra

if TYPE_CHECKING:
    import psutil  # type: ignore[import-untyped]

# Followed by a folder: starts its caretaker.
CARETAKER = [sys.executable, "-m", "launch.processes.caretaker"]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes that belong to this folder, whoever their parent is by now.

    The folder's name is unique to one launch and stands on the command line (gcs, raylet, dashboard), in the
    environment, or behind the standard output (workers and what they start) of each of its processes. This process
    itself is left out, and so is the folder's caretaker: it must outlive the rest, in case this process is killed while
    it ends them.
    """
    psutil, name = _load_psutil(), str(folder)
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _mentions(process, name)]


def end_processes(folder: Path, patience: float = 3.0) -> None:
    """End every process of this folder: politely first, after `patience` seconds for certain."""
    psutil = _load_psutil()
    for kill in (False, True, True):  # the last round is for what was being started during the second
        processes = processes_of(folder)
        for process in processes:
            try:
                process.kill() if kill else process.terminate()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=patience)


def _mentions(process: psutil.Process, name: str) -> bool:
    psutil = _load_psutil()
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        command = process.cmdline()
        if command[1:3] == CARETAKER[1:3]:
            return False
        if any(name in argument for argument in command):
            return True
        if any(name in value for value in process.environ().values()):
            return True
        return any(name in os.readlink(f"/proc/{process.pid}/fd/{stream}") for stream in (1, 2))
    except (psutil.Error, OSError):  # gone meanwhile, or another user's: not ours
        return False


def _load_psutil() -> Any:
    with needs_extra("launch", "psutil", "launching"):
        import psutil
    return psutil


def describe_end(status: int) -> str:
    """How a process ended, as a part of a sentence about it."""
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def last_lines(text: str, count: int) -> str:
    """The last `count` lines that are not blank."""
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])


def take_care(folder: Path) -> None:
    """Wait for the end of standard input, then end every process of the folder and remove it."""
    _load_psutil()  # now: later the disk may be full, or gone
    while os.read(0, 1):
        pass
    end_processes(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    take_care(Path(sys.argv[1]))
