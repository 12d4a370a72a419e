"""What a command costs before it has done anything: CPU seconds of its whole process tree, beside `import torch`.

The commands take turns, in fresh processes; figures are medians, in seconds and as multiples of `import torch` in the
same run, by which machines compare. They are:

torch       python -c "import torch"
help        t4p --help
wrong_path  t4p pretrain configs/smoke.yaml, whose data.shards is not there: until it is refused
pretrain    the same on real frames, one step: until the end of that step (`first_step`), and whole
launch      t4p launch pretrain --workers 1, two steps: until the end of the first, and whole
plan        t4p plan configs/pretrain/scannet.yaml configs/cluster/8x8.yaml, whose bucket nobody has

Counted is what the kernel adds up for processes that were waited for. Orphans come to this process, which waits for
them. A parent that ignores the ends of its children (Ray's raylet) leaves theirs out: those count as last seen, which
is at most LOOK_EVERY before their end.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Annotated, Any

import typer
from frames import pack_frames
from record import REPOSITORY, record

LOOK_EVERY = 0.03  # seconds
TICKS = os.sysconf("SC_CLK_TCK")
SIGCHLD_BIT = 1 << 16
PR_SET_CHILD_SUBREAPER = 36
T4P = (sys.executable, "-m", "commands.main")


@dataclass(frozen=True)
class Command:
    """Something to start.

    Attributes:
        words: program and arguments.
        status: with which it ends.
        metrics: a file whose first line tells that the first step has ended.
    """

    words: tuple[str, ...]
    status: int = 0
    metrics: Path | None = None


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it: seconds of its own and of children that it waited for."""

    parent: int
    seconds: float
    ignores_children: bool


def main(
    repeats: Annotated[int, typer.Option(min=1, help="How often each command runs.")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="Names of commands to run beside `import torch`.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPOSITORY)}
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="t4p-start-") as folder:
        shards = pack_frames(Path(folder))
        run_command(Command((sys.executable, "-c", "import torch")))  # files into memory
        for repeat in range(repeats):
            for name, command in commands(shards, Path(folder) / str(repeat)).items():
                if name == "torch" or not only or name in only:
                    rows.append({"command": name, "repeat": repeat, **run_command(command)})
                    print(rows[-1], file=sys.stderr)
    report = record("start", repeats, summarise(rows), rows, ("torch", "deepspeed", "ray", "open_clip_torch"))
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report["figures"].items():
        print(f"{name:>28} {value:8.2f}")


def commands(shards: str, folder: Path) -> dict[str, Command]:
    """The commands by name, each with a run folder of its own."""

    def training(name: str, data: str, steps: int) -> tuple[str, ...]:
        return (
            *("configs/smoke.yaml", f"data.shards=[{data}]", f"run.dir={folder / name}"),
            *(f"train.num_steps={steps}", "train.warmup_steps=1"),
        )

    return {
        "torch": Command((sys.executable, "-c", "import torch")),
        "help": Command((*T4P, "--help")),
        "wrong_path": Command((*T4P, "pretrain", *training("wrong", str(folder / "nowhere"), 2)), status=2),
        "pretrain": Command(
            (*T4P, "pretrain", *training("pretrain", shards, 1), "train.warmup_steps=0"),
            metrics=folder / "pretrain" / "metrics.jsonl",
        ),
        "launch": Command(
            (*T4P, "launch", "pretrain", "--workers", "1", *training("launch", shards, 2)),
            metrics=folder / "launch" / "metrics.jsonl",
        ),
        "plan": Command((*T4P, "plan", "configs/pretrain/scannet.yaml", "configs/cluster/8x8.yaml")),
    }


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Medians: CPU seconds by command, and over those of `import torch`."""
    figures: dict[str, float] = {}
    for name in dict.fromkeys(row["command"] for row in rows):
        own = [row for row in rows if row["command"] == name]
        for key in ("first_step", "whole"):
            if key in own[0]:
                label = name if key == "whole" else f"{name}_{key}"
                figures[f"{label}_cpu_seconds"] = statistics.median(row[key] for row in own)
    torch = figures["torch_cpu_seconds"]
    for label, seconds in list(figures.items()):
        if label != "torch_cpu_seconds":
            figures[label.replace("_cpu_seconds", "_over_torch")] = seconds / torch
    return figures


def run_command(command: Command) -> dict[str, float]:
    """CPU seconds of the command and of everything that it started: whole, and up to the end of its first step.

    Raises:
        RuntimeError: it ended with another status than it should.
    """
    meter, first_step = Meter(), None
    with TemporaryFile() as output:
        pid = subprocess.Popen(
            command.words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        ).pid
        while meter.look():
            if first_step is None and command.metrics and _has_line(command.metrics):
                first_step = meter.seconds()
            time.sleep(LOOK_EVERY)
        if (status := meter.statuses[pid]) != command.status:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command.words)} ended with {status}:\n{output.read().decode()}")
    return ({} if first_step is None else {"first_step": first_step}) | {"whole": meter.seconds()}


class Meter:
    """CPU seconds of the descendants of this process since the meter was made.

    Attributes:
        statuses: exit statuses of those whom this process waited for, by pid: its children, and orphans.
    """

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self._ended = 0.0
        self._alive: dict[int, Seen] = {}

    def look(self) -> bool:
        """Note who is alive and wait for whom nobody else does; whether anybody is left. To be called often."""
        children_left = self._wait()
        now = _descendants(os.getpid())
        for pid, seen in self._alive.items():
            parent = self._alive.get(seen.parent)
            if pid not in now and pid not in self.statuses and parent is not None and parent.ignores_children:
                self._ended += seen.seconds
        self._alive = now
        return children_left

    def seconds(self) -> float:
        """Of all that have ended and of the living."""
        return round(self._ended + sum(seen.seconds for seen in self._alive.values()), 2)

    def _wait(self) -> bool:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.statuses[pid] = os.waitstatus_to_exitcode(status)
            self._ended += usage.ru_utime + usage.ru_stime


def _descendants(root: int) -> dict[int, Seen]:
    processes: dict[int, Seen] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdecimal():
            continue
        try:
            fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            ignored = _ignored_signals(entry.path)
        except OSError:  # it ended meanwhile
            continue
        seconds = sum(map(int, fields[11:15])) / TICKS
        processes[int(entry.name)] = Seen(int(fields[1]), seconds, bool(ignored & SIGCHLD_BIT))
    return {pid: seen for pid, seen in processes.items() if _descends(pid, root, processes)}


def _ignored_signals(process: str) -> int:
    for line in Path(process, "status").read_text().splitlines():
        if line.startswith("SigIgn:"):
            return int(line.split()[1], 16)
    return 0


def _descends(pid: int, root: int, processes: dict[int, Seen]) -> bool:
    while (seen := processes.get(pid)) is not None:
        pid = seen.parent
        if pid == root:
            return True
    return False


def _has_line(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    typer.run(main)
