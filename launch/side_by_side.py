"""Commands side by side on this machine, each in a process of its own: what needs neither Ray nor each other."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from launch.errors import LaunchError
from launch.private_folder import caretaker, environment_of_one, private_folder
from launch.private_ray import last_lines
from launch.processes import end_processes

OWNER = "T4P_OWNER"  # an environment variable by which the caretaker knows what to end


def run_side_by_side(commands: Mapping[str, Sequence[str]], on_tick: Callable[[], None]) -> None:
    """Run all at once, each on its share of the cores, and wait for them. None outlives this process.

    Args:
        commands: program and arguments, by a name for messages.
        on_tick: called a few times per second meanwhile.

    Raises:
        LaunchError: one failed: its name and last lines. The others have been ended.
    """
    share = max(1, len(os.sched_getaffinity(0)) // len(commands))
    threads = {"OMP_NUM_THREADS": str(share), "OMP_WAIT_POLICY": "PASSIVE"}
    with private_folder() as folder, caretaker(folder):
        environment = {**threads, **environment_of_one(), OWNER: str(folder)}
        logs = {name: folder / f"{index}.log" for index, name in enumerate(commands)}
        started: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name, command in commands.items():
                with logs[name].open("wb") as log:
                    started[name] = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,  # a Ctrl-C in the terminal reaches this process alone
                    )
            running = dict(started)
            while running:
                time.sleep(0.2)
                on_tick()
                for name, process in list(running.items()):
                    status = process.poll()
                    if status:
                        said = last_lines(logs[name].read_text(encoding="utf-8", errors="replace"), 15)
                        raise LaunchError(f"{name}: ended with status {status}; its last lines:\n{said}")
                    if status == 0:
                        del running[name]
        finally:
            end_processes(folder)
            for process in started.values():
                process.wait()
