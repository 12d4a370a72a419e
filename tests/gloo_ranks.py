"""Real gloo ranks for tests: the same command once per rank, with the environment that torchrun would give."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def start_ranks(commands: Sequence[Sequence[str]], logs: Path) -> list[subprocess.Popen[bytes]]:
    """Start one process per command, rank by rank; what each says goes to `logs/rank-R.txt`."""
    logs.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank, command in enumerate(commands):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(commands)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        with (logs / f"rank-{rank}.txt").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
                )
            )
    return processes


def wait_for_ranks(processes: Sequence[subprocess.Popen[bytes]], timeout: float = 600.0) -> list[int]:
    """Their exit statuses; those that are left after `timeout` seconds are killed, and AssertionError names them."""
    deadline = time.monotonic() + timeout
    try:
        return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired as error:
        hanging = [rank for rank, process in enumerate(processes) if process.poll() is None]
        raise AssertionError(f"rank(s) {hanging} did not end within {timeout:g} s") from error
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def said(logs: Path) -> str:
    """What all ranks said, for messages."""
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')}" for path in sorted(logs.glob("rank-*.txt")))
