"""`t4p doctor`: what is installed and works, and for each gap the command that closes it.

Every check is a process of its own (launch/doctor_probes.py), ended when it takes too long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from commands.doctor.finding import Finding, read_finding
from commands.doctor.fixes import MINKOWSKI, install_minkowski, pip_install
from launch.processes.caretaker import describe_end, last_lines
from launch.processes.environment import environment_of_one
from shards.stores.place import open_store

# Seconds that a probe has to clean up once it was told to end.
END_PATIENCE = 10.0


@dataclass(frozen=True)
class Check:
    """Something to try.

    Attributes:
        name: what it is called in the table.
        probe: its name in commands.doctor.probes.PROBES.
        arguments: command line of the probe.
        packages: that are installed again where it does not work.
        needed: without it nothing, or nothing that was asked for, works; exit status 1.
        timeout: seconds.
    """

    name: str
    probe: str
    arguments: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    needed: bool = True
    timeout: float = 60.0


@dataclass(frozen=True)
class Row:
    """A check that was made."""

    check: Check
    finding: Finding

    @property
    def is_failure(self) -> bool:
        return self.check.needed and self.finding.state in ("missing", "broken")


@dataclass(frozen=True)
class Diagnosis:
    """All checks, in the order in which they were made."""

    rows: tuple[Row, ...]

    @property
    def failures(self) -> tuple[Row, ...]:
        """What is needed and does not work."""
        return tuple(row for row in self.rows if row.is_failure)

    @property
    def exit_status(self) -> int:
        return 1 if self.failures else 0

    def to_json(self) -> dict[str, Any]:
        checks = [
            {
                "name": row.check.name,
                "state": row.finding.state,
                "needed": row.check.needed,
                "found": row.finding.found,
                "fix": row.finding.fix,
                "figures": dict(row.finding.figures),
            }
            for row in self.rows
        ]
        return {"ok": not self.failures, "checks": checks}


RAY = Check("ray", "ray", packages=("ray[default,train]",), timeout=120.0)
STORAGE = Check("storage", "storage", timeout=90.0)
CHECKS = (
    Check("python", "python"),
    Check("packages", "packages"),
    Check("torch", "torch", packages=("torch", "torchvision")),
    Check("gpu", "gpu", needed=False),
    Check("sparse: native", "sparse", ("native",), packages=("torch", "torchvision")),
    Check("sparse: minkowski", "sparse", ("minkowski",), packages=(MINKOWSKI,), needed=False),
    Check("clip", "clip", packages=("open_clip_torch",)),
    Check("webdataset", "webdataset", packages=("webdataset",)),
    Check("deepspeed", "deepspeed", packages=("deepspeed",), timeout=120.0),
    Check("disk", "disk"),
    Check("shared memory", "shared_memory", needed=False),
)


def diagnose(url: str | None, before: Callable[[Check, int, int], None] = lambda check, done, of: None) -> Diagnosis:
    """Make every check.

    Args:
        url: storage to try: a folder, or s3://bucket/prefix.
        before: called before each check, with how many are done and how many there are.

    Raises:
        CallError: `url` names no place.
    """
    storage = STORAGE if url is None else replace(STORAGE, arguments=(url,))
    if url is not None:
        open_store(url)
    num_checks = len(CHECKS) + (1 if url is None else 2)
    rows: list[Row] = []
    # Ray mostly waits, and takes as long as all the rest: it is tried beside them. Storage is timed, so it comes alone.
    with Trial(RAY) as ray:
        for check in CHECKS:
            before(check, len(rows), num_checks)
            rows.append(make(check))
        before(RAY, len(rows), num_checks)
        rows.append(ray.wait())
    if url is None:
        ask = "t4p doctor --url s3://BUCKET/PREFIX (or a folder)"
        rows.append(Row(storage, Finding("skipped", "not tried: no place was named", ask)))
    else:
        before(storage, len(rows), num_checks)
        rows.append(make(storage))
    return Diagnosis(tuple(rows))


def make(check: Check) -> Row:
    """Make one check."""
    with Trial(check) as trial:
        return trial.wait()


class Trial:
    """A check that is being made, by a process in a session of its own. At its end nothing of that is left."""

    def __init__(self, check: Check) -> None:
        """Start the process."""
        self._check = check
        self._began = time.monotonic()
        self._folder = tempfile.TemporaryDirectory(prefix="t4p-doctor-")
        self._path, self._log = Path(self._folder.name) / "finding.json", Path(self._folder.name) / "output"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "commands.doctor.probes", check.probe, str(self._path), *check.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment_of_one(),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()

    def wait(self) -> Row:
        """Wait for the process, until its time is up."""
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(max(0.0, self._began + self._check.timeout - time.monotonic()))
        if status is None:
            self._end()
        # A process that had found out what was asked may still crash at its exit; some of DeepSpeed's do.
        finding = read_finding(self._path)
        if finding is None:
            finding = explain_end(self._check, status, self._log.read_text(encoding="utf-8", errors="replace"))
        return Row(self._check, with_fix(self._check, finding))

    def _end(self) -> None:
        """End the process, politely first, and then what it may have started in its session."""
        try:
            if self._process.poll() is None:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def with_fix(check: Check, finding: Finding) -> Finding:
    """A finding with a next move, where there is a gap and the probe knew none."""
    if finding.state not in ("missing", "broken") or finding.fix or not check.packages:
        return finding
    if check.packages == (MINKOWSKI,):
        return replace(finding, fix=install_minkowski())
    return replace(finding, fix=pip_install(check.packages, reinstall=finding.state == "broken"))


def explain_end(check: Check, status: int | None, output: str) -> Finding:
    """What is known of a probe that left no finding.

    Args:
        status: its exit status; None where it was ended.
    """
    fix = ""
    if status is None:
        how = f"did not end within {check.timeout:g} s"
        fix = "try again when the machine is less busy"
    elif status < 0:
        how = f"crashed with {signal.Signals(-status).name}"
    else:
        how = describe_end(status)
    said = last_lines(output, 5)
    return Finding("broken", f"{how}; its last lines:\n{said}" if said else how, fix)
