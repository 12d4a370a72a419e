"""Run a test file as several ranks: real processes, real gloo, all of them ended when one fails."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

TESTS = Path(__file__).resolve().parent


def run_ranks(script: str | Path, num_ranks: int, folder: Path, timeout: float = 300) -> None:
    """Run `python script RANK FOLDER` once for every rank, side by side, one thread each, and wait for all.

    Raises:
        AssertionError: a rank failed or the time is over; carries what the ranks that ended by themselves printed. The
            others only wait for it in a collective: they are killed.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    logs = [folder / f"rank_{rank}.log" for rank in range(num_ranks)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            command = [sys.executable, str(script), str(rank), str(folder)]
            with log.open("w") as output:
                processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.returncode for process in processes):
                time.sleep(2)  # what broke one rank often breaks the others a moment later
                break
            time.sleep(0.05)
        ended = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(code != 0 for code in ended):
        told = "\n\n".join(
            f"rank {rank} ended with {code}:\n{log.read_text()}"
            for rank, (code, log) in enumerate(zip(ended, logs, strict=True))
            if code
        )
        raise AssertionError(told or f"after {timeout} s ranks were still running: exit codes {ended}")


@contextmanager
def joined_world(rank: int, world_size: int, folder: Path) -> Iterator[None]:
    """A gloo process group of the ranks that enter this; a folder serves one world of each size."""
    store = f"file://{folder}/store_{world_size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=240))
    try:
        yield
        dist.barrier()  # nobody leaves while another rank still talks to it
    finally:
        dist.destroy_process_group()


@contextmanager
def replaced(target: object, name: str, value: object) -> Iterator[None]:
    """Plant a bug: `target.name` is `value` in here."""
    original = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, original)
