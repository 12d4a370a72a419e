"""Python processes that start with torch, DeepSpeed and open_clip already imported: forks of one that has them.

A fork is a process of its own, as `subprocess.Popen([sys.executable, ...])` gives: its own arguments, environment
and output, a process group of its own that can be killed, globals that nobody else has touched, one thread
until it starts more. Only importing is saved, about 5 CPU seconds a process, for tests that start many. What a process
imports, and when, is for tests that start Python anew (tests/unit/test_imports.py).

Run as a script, this is the process that is forked: it takes a line of JSON for each request (`Forks` makes them).
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
# What trainings and the commands around them import; read when they are: one thread each, and no GPU.
IMPORTED = (
    *("commands.main", "commands.checkpoint", "t4p.tasks.pretrain", "t4p.tasks.semantic", "t4p.tasks.evaluate"),
    *("t4p.train.run_folder", "t4p.models.clip_package", "launch.progress", "torch.utils.tensorboard"),
)
SETTINGS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "DS_ACCELERATOR": "cpu"}


class Fork:
    """A running process, with what tests use of Popen."""

    def __init__(self, server: Forks, pid: int, arguments: Sequence[str]) -> None:
        self.pid = pid
        self.args = arguments
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 600) -> int:
        """The exit status, when it has one.

        Raises:
            subprocess.TimeoutExpired: it still ran.
        """
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(list(self.args), timeout)
            time.sleep(0.02)
        return status

    def kill(self) -> None:
        """SIGKILL to it and to what it has started, unless it has ended."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)


class Forks:
    """The process that is forked, from the first request to the end of this one."""

    def __init__(self) -> None:
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), *([inherited] if inherited else [])])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | SETTINGS | {"PYTHONPATH": path},
            cwd=ROOT,
        )
        atexit.register(self.close)
        self.ask()

    def close(self) -> None:
        """Let the process that is forked end; where a fork of this one holds its input open, make it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def start(
        self, arguments: Sequence[str], stdout: Path, stderr: Path | None = None, environment: Mapping[str, str] = {}
    ) -> Fork:
        """Start what `python ARGUMENTS` would be, at the repository's root.

        Args:
            arguments: `-m MODULE`, `-c PROGRAM` or the path of a script, and its own.
            stdout, stderr: files to write; without the second, both go into the first.
            environment: instead of what this process has, SETTINGS apart.
        """
        pid = self.ask(
            start=list(arguments),
            stdout=str(stdout),
            stderr=str(stderr or stdout),
            environment={**(environment or os.environ), **SETTINGS},
        )
        return Fork(self, pid, arguments)

    def ask(self, **request: Any) -> Any:
        """One request to the process, and its answer."""
        writing, reading = self._process.stdin, self._process.stdout
        assert writing is not None
        assert reading is not None
        writing.write(json.dumps(request).encode() + b"\n")
        writing.flush()
        answer = reading.readline()
        assert answer, f"the process that is forked has ended: {self._process.wait(10)}"
        return json.loads(answer)


@cache
def forks() -> Forks:
    """The one of this process."""
    return Forks()


def run_python(
    arguments: Sequence[str], environment: Mapping[str, str] = {}, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)` gives."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = forks().start(arguments, stdout, stderr, environment)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(list(arguments), status, stdout.read_text(), stderr.read_text())


# ---- the process that is forked --------------------------------------------------------------------------------------


def serve(requests: IO[bytes], answers: IO[bytes]) -> dict[str, Any] | None:
    """Answer requests to their end; in a fork, return what it is to be."""
    for line in requests:
        request = json.loads(line)
        answer: int | None = None
        if "start" in request:
            assert len(os.listdir("/proc/self/task")) == 1, "a fork would lack the other threads"
            answer = os.fork()
            os.setpgid(answer, answer or os.getpid())  # on both sides: whoever is asked to kill it may be quicker
            if not answer:
                return request
        elif "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
    return None


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    os.environ.clear()
    os.environ.update(request["environment"])
    for descriptor, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    first, *arguments = request["start"]
    if first in ("-m", "-c"):
        sys.path[0] = os.getcwd()
        what, *arguments = arguments
        sys.argv = [first, *arguments]
        if first == "-m":
            sys.modules.pop(what, None)
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    talk = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed on the way is no answer
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what was imported stays, and is not searched again in every fork
    if asked := serve(*talk):
        for end in talk:
            end.close()
        become(asked)
