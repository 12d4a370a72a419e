"""Run a script as several ranks: real processes (forks.py), real gloo, none of them left when the test goes on.

A test file that is its own worker has two sides: the test runs it (`run_worlds`, `run_ranks`) and gets the reports that
the ranks left (`visit_worlds`, `write_report`). Torch is imported only where it is used: some tests only start ranks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from forks import Fork, forks
from ports import free_ports

TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Ranks:
    """Running ranks, from `start_ranks`.

    Attributes:
        processes: by rank.
        logs: folder; what a rank says is in `rank-R.txt`.
    """

    processes: list[Fork]
    logs: Path

    def wait(self, timeout: float) -> None:
        """Wait until all ranks have ended well.

        Raises:
            AssertionError: a rank failed or the time is over; carries what all of them said. The others are not waited
                for: as a rule they sit in a collective with the one that failed.
        """
        start = time.monotonic()
        while None in self._polled() and time.monotonic() < start + timeout:
            if any(self._polled()):
                time.sleep(2)  # what broke one rank often breaks the others a moment later
                break
            time.sleep(0.05)
        statuses = self._polled()
        if any(status != 0 for status in statuses):
            waited = f"after {time.monotonic() - start:.0f} s"
            raise AssertionError(f"exit statuses {waited}: {statuses} (None: it still ran)\n{self.said()}")

    def statuses(self, timeout: float = 600) -> list[int]:
        """Exit statuses when all ranks have ended by themselves: for tests that kill one, and look at the others.

        Raises:
            AssertionError: some still ran after `timeout` seconds; carries what all of them said.
        """
        deadline = time.monotonic() + timeout
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired as error:
            hanging = [rank for rank, status in enumerate(self._polled()) if status is None]
            raise AssertionError(f"rank(s) {hanging} did not end within {timeout:g} s\n{self.said()}") from error

    def said(self) -> str:
        """What all ranks said, for messages."""
        paths = [self.logs / f"rank-{rank}.txt" for rank in range(len(self.processes))]
        return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in paths)

    def _polled(self) -> list[int | None]:
        return [process.poll() for process in self.processes]


@contextmanager
def start_ranks(command: Sequence[str], num_ranks: int, logs: Path) -> Iterator[Ranks]:
    """Start the command, of this Python, once per rank, with the environment that torchrun would give, one thread each.

    The ranks can import the repository's packages and the helpers in this folder. What is left of them in the end is
    killed.
    """
    interpreter, *arguments = command
    assert interpreter == sys.executable
    logs.mkdir(parents=True, exist_ok=True)
    inherited = os.environ.get("PYTHONPATH")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), *([inherited] if inherited else [])]),
        "WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
    }
    processes: list[Fork] = []
    try:
        for rank in range(num_ranks):
            of_rank = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(forks().start(arguments, logs / f"rank-{rank}.txt", environment=of_rank))
        yield Ranks(processes, logs)
    finally:
        for process in processes:
            process.kill()


# --- a test file that is its own worker ---------------------------------------------------------------------------


def run_ranks(script: str, num_ranks: int, folder: Path, timeout: float) -> list[Any]:
    """Run `python script FOLDER` on all ranks of one world; the report of each (write_report).

    Raises:
        AssertionError: a rank failed or the time is over.
    """
    with start_ranks([sys.executable, script, str(folder)], num_ranks, folder / f"logs-{num_ranks}") as ranks:
        ranks.wait(timeout)
    return _read_reports(folder, num_ranks)


def run_worlds(script: str, world_sizes: Sequence[int], folder: Path, timeout: float = 300) -> dict[int, list[Any]]:
    """Run `python script FOLDER`, which calls visit_worlds; by world size, the report of each rank.

    Raises:
        AssertionError: a rank failed or the time is over.
    """
    run_ranks(script, max(world_sizes), folder, timeout)
    return {world_size: _read_reports(folder, world_size) for world_size in world_sizes}


def visit_worlds(world_sizes: Sequence[int], folder: Path, run_world: Callable[[int, int], Any]) -> None:
    """Be this rank of every world that has it, one after the other: importing torch takes long.

    Args:
        folder: serves one world of each size.
        run_world: takes rank and world size, and returns the report of this rank.
    """
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    for world_size in world_sizes:
        if rank >= world_size:
            continue
        store, patience = f"file://{folder}/store-{world_size}", timedelta(seconds=240)
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size, timeout=patience)
        try:
            report = run_world(rank, world_size)
            dist.barrier()  # nobody leaves while another rank still talks to it
        finally:
            dist.destroy_process_group()
        write_report(folder, rank, world_size, report)


def write_report(folder: Path, rank: int, world_size: int, report: Any) -> None:
    """Leave what this rank found: numbers, strings and tensors, in lists and dicts."""
    import torch

    torch.save(report, _report_file(folder, rank, world_size))


def _read_reports(folder: Path, world_size: int) -> list[Any]:
    import torch

    return [torch.load(_report_file(folder, rank, world_size)) for rank in range(world_size)]


def _report_file(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"report-{world_size}-{rank}.pt"
