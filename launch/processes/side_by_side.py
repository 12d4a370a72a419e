"""Commands side by side on this machine, each in a process of its own: what needs neither Ray nor each other."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.errors import LaunchError, writing_in
from launch.processes.caretaker import describe_end, end_processes, last_lines
from launch.processes.environment import environment_of_one
from launch.processes.own_files import open_own
from launch.processes.private_folder import caretaker, private_folder
from launch.processes.stop_signals import StopSignals

OWNER = "T4P_OWNER"  # an environment variable by which the caretaker knows what to end


@dataclass(frozen=True)
class Command:
    """Something to run.

    Attributes:
        words: program and arguments.
        log: where its output goes, added to what is there; its folder is made.
    """

    words: Sequence[str]
    log: Path


def run_side_by_side(commands: Mapping[str, Command], on_tick: Callable[[], None]) -> None:
    """Run all at once, each on its share of the cores, and wait for them. None outlives this process.

    On a machine with GPUs all see all of them, and a training of one worker takes the first.

    Args:
        commands: by a name for messages.
        on_tick: called a few times per second meanwhile.

    Raises:
        LaunchError: one failed: its name, its last lines and where the others are. The other commands have been ended.
        Stopped: on SIGINT, SIGTERM or SIGHUP unless it was ignored, after everything has been ended.
    """
    share = max(1, len(os.sched_getaffinity(0)) // len(commands))
    threads = {"OMP_NUM_THREADS": str(share), "OMP_WAIT_POLICY": "PASSIVE"}
    with StopSignals() as stops, private_folder() as folder, caretaker(folder):
        environment = {**threads, **environment_of_one(), OWNER: str(folder)}
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name, command in commands.items():
                started[name] = _start(command, environment)
            running = dict(started)
            while running:
                time.sleep(0.2)
                on_tick()
                for name, process in list(running.items()):
                    status = process.poll()
                    if status:
                        raise LaunchError(_describe_failure(name, status, commands[name].log))
                    if status == 0:
                        del running[name]
        finally:
            with stops.held():
                end_processes(folder)
                for process in started.values():
                    process.wait()
        stops.raise_waiting()


def _start(command: Command, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with writing_in(command.log.parent, "the output folder"):
        command.log.parent.mkdir(parents=True, exist_ok=True)
        log = open_own(command.log, "ab")
    with log:
        return subprocess.Popen(
            command.words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone
        )


def _describe_failure(name: str, status: int, log: Path) -> str:
    with open_own(log, "rb") as file:
        said = last_lines(file.read().decode("utf-8", errors="replace"), 15)
    return f"{name} {describe_end(status)}; its last lines, all of them are in {log}:\n{said}"
