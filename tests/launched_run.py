"""A training that was launched, on a private Ray or as a job: processes of its own, and the eyes to hit them."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from live_processes import is_running

from launch.processes.caretaker import processes_of
from launch.training import newest_step

ROOT = Path(__file__).resolve().parent.parent
# Seconds, for one thing to happen: an attempt takes about 12 on two idle cores. Below the half hour after which a
# collective that lost a rank gives up by itself.
PATIENCE = 900
LOOK_EVERY = 0.005  # seconds: a checkpoint is being written for some tens of milliseconds
SEARCH_EVERY = 0.1  # seconds; going through all processes of the machine takes as long as many a step


class Launched:
    """`t4p launch ...` in a process of its own: one that trains on a private Ray, or one that follows a job.

    Attributes:
        process: the command.
        run_dir: of the training.
    """

    def __init__(self, run_dir: Path, arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
        """
        Args:
            said: a new file for all that the command prints.
        """
        self.run_dir = run_dir
        self._said = said
        with said.open("xb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "commands.main", "launch", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def output(self) -> str:
        return self._said.read_text()

    def wait_for(self, condition: Callable[[], object], what: str, every: float = LOOK_EVERY) -> None:
        """Wait for something that happens while the command runs."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output()}"
            assert time.monotonic() < end, f"waited {PATIENCE} s for {what}:\n{self.output()}"
            time.sleep(every)

    def wait_for_progress(self, every: int) -> None:
        """Wait until this attempt has written a checkpoint and trained a step that no attempt had trained before.

        Args:
            every: steps between checkpoints.
        """
        begun = newest_step(self.run_dir / "checkpoints")
        self.wait_for(lambda: num_lines(self.run_dir) > begun + every, f"step {begun + every + 1}")

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(timeout=PATIENCE)

    def restarts(self) -> list[str]:
        """What was said of each restart, in one line."""
        return [line for line in self.output().splitlines() if re.search(r"restart \d+ of \d+ goes on", line)]

    def driver(self) -> psutil.Process:
        """The process that talks to a private Ray, as soon as there is one."""
        found: list[psutil.Process] = []

        def look() -> bool:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.NoSuchProcess):  # the driver before it, which ends meanwhile
                    if "launch.driver" in child.cmdline():
                        found.append(child)
            return bool(found)

        self.wait_for(look, "the process that talks to Ray", SEARCH_EVERY)
        return found[0]

    def workers(self, below: Path) -> list[psutil.Process]:
        """Both workers, by rank, as soon as they are there.

        Args:
            below: folder that holds those where workers of this attempt write.
        """
        found: dict[int, psutil.Process] = {}

        def look() -> bool:
            found.update(workers_by_rank(below))
            return len(found) == 2

        self.wait_for(look, "both workers", SEARCH_EVERY)
        return [found[rank] for rank in range(2)]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def workers_by_rank(below: Path) -> dict[int, psutil.Process]:
    """The processes whose output goes to the log of a rank in a folder somewhere below the one given."""
    found, parents = {}, {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            output = Path(os.readlink(f"/proc/{process.pid}/fd/1"))
            rank = re.fullmatch(r"rank-(\d)\.log", output.name)
            if rank and below in output.parents:
                found[process], parents[process] = int(rank[1]), process.ppid()
    pids = {process.pid for process in found}
    return {rank: process for process, rank in found.items() if parents[process] not in pids}  # no loaders


def suspend(processes: Iterable[psutil.Process]) -> None:
    """Make workers stand still: on a quick machine they would train to the end before anybody notices a loss."""
    for process in processes:
        process.suspend()


def not_ended(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended when the patience has."""
    end = time.monotonic() + PATIENCE
    while (left := [process for process in processes if is_running(process.pid)]) and time.monotonic() < end:
        time.sleep(SEARCH_EVERY)
    return left


def cpu_seconds(folder: Path) -> float:
    """User and system time so far of the processes that belong to a folder, and of their children that have ended."""
    total = 0.0
    for process in processes_of(folder):
        with suppress(psutil.NoSuchProcess):  # it ends meanwhile
            total += sum(process.cpu_times()[:4])
    return total


def cpu_of_children() -> float:
    """User and system time of the children of this process that have ended and were waited for, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def num_lines(run_dir: Path) -> int:
    """Steps that are logged."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_being_written(run_dir: Path) -> bool:
    """Whether a checkpoint is, at this moment."""
    folders = (run_dir / "checkpoints").glob("step_*")
    return any(not (folder / "COMPLETE.json").exists() for folder in folders)


def assert_same_run(run_dir: Path, uninterrupted: Path, num_steps: int) -> None:
    """Every logged loss and every saved parameter and buffer, bit for bit; one line per step."""
    logged, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run_dir, uninterrupted)
    )
    assert [line["step"] for line in logged] == list(range(1, num_steps + 1))
    for name in ("loss", "loss_e", "loss_d", "gradient_norm", "samples_seen"):
        assert [line[name] for line in logged] == [line[name] for line in wanted], name
    saved, saved_wanted = (
        torch.load(folder / "checkpoints" / f"step_{num_steps:08d}" / "mp_rank_00_model_states.pt", weights_only=False)[
            "module"
        ]
        for folder in (run_dir, uninterrupted)
    )
    assert saved.keys() == saved_wanted.keys()
    assert all(torch.equal(saved[name], saved_wanted[name]) for name in saved)
