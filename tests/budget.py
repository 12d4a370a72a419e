"""The tests' budget: a file that takes more CPU seconds than 1.5 times its line in tests/budget.toml fails the session.

Counted is what process_tree.py counts, from the first test of a file to the last, everything its tests start included.
Not counted is what no file can help, and what whoever comes first would pay for all: collecting (which imports torch)
and starting what the session shares (the S3 server).

Machines differ: at the start of a session a fixed loop is timed and compared with the figure in the file, and again
after long files, beside whatever else runs, and before a file fails; the slowest counts. A slower or busier machine is
allowed as much more, a faster one no less; `--write-budget` divides by the same ratio.

A file of which only some tests ran is not judged, nor is its line written.
"""

from __future__ import annotations

import math
import statistics
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from process_tree import WatchedTree

EXCESS = 1.5
LOOKS_AGAIN = 20.0  # CPU seconds of a file after which the loop is timed again, beside whatever else runs
BUDGET = "tests/budget.toml"
SMALLEST_LINE = 2  # a lower one would be about what a file happens to import first
STAYS_WITHIN = 0.15  # a line this near to what was measured is left alone

# ---- the pure part ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Budget:
    """tests/budget.toml.

    Attributes:
        calibration: CPU seconds of the loop (calibrate) where these lines are true.
        slack: CPU seconds allowed beside a line: small files are mostly what they import, which varies.
        lines: CPU seconds allowed, by path from the repository's root.
    """

    calibration: float
    lines: dict[str, float]
    slack: float = 0.0

    @classmethod
    def read(cls, path: Path) -> Budget:
        tables = tomllib.loads(path.read_text())
        return cls(tables["calibration"], tables["files"], tables.get("slack", 0.0))


@dataclass
class Spent:
    """What a session has seen.

    Attributes:
        seconds: CPU seconds by file.
        partial: files of which some tests were left out.
        failed: files with a test that failed, of which nobody knows how long they take.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, other: Spent) -> None:
        """Take in another process of the same session."""
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.partial |= other.partial
        self.failed |= other.failed

    def whole(self) -> dict[str, float]:
        """CPU seconds of the files that can be judged."""
        return {name: seconds for name, seconds in self.seconds.items() if name not in self.partial | self.failed}


def complaints(budget: Budget, spent: Mapping[str, float], slowness: float, gone: Iterable[str]) -> list[str]:
    """One sentence for each line that is wrong.

    Args:
        spent: CPU seconds of the files that ran as a whole.
        slowness: of this machine: the time of the loop here, divided by the one of the budget.
        gone: lines whose file is not there.
    """
    found = []
    for name, seconds in sorted(spent.items()):
        if name not in budget.lines:
            found.append(
                f'{name} took {seconds:.1f} CPU seconds and has no line in {BUDGET}: add "{name}" = '
                f"{line_for(seconds, slowness)} (or run it with --write-budget)."
            )
            continue
        line = budget.lines[name]
        allowed = (EXCESS * line + budget.slack) * max(1.0, slowness)
        if seconds > allowed:
            found.append(
                f"{name} took {seconds:.1f} CPU seconds, {allowed:.1f} are allowed ({EXCESS:g} times its line and "
                f"{budget.slack:g} more, on a machine {slowness:.2f} times as slow as the budget's): make it quicker, "
                f"or say in the same commit why it takes longer and change its line, now {line:g}, in {BUDGET}."
            )
    found += [f"{name} has a line in {BUDGET} and is no test file: take the line out." for name in sorted(gone)]
    return found


def line_for(seconds: float, slowness: float) -> int:
    """What to write for a file that took so long here."""
    return max(SMALLEST_LINE, math.ceil(seconds / slowness))


def rewritten(text: str, budget: Budget, spent: Mapping[str, float], slowness: float, gone: Iterable[str]) -> str:
    """The file's text with the lines of what ran, sorted; comments before the first line stay."""
    lines = {name: line for name, line in budget.lines.items() if name not in set(gone)}
    for name, seconds in spent.items():
        measured = line_for(seconds, slowness)
        if name not in lines or abs(lines[name] - measured) > STAYS_WITHIN * measured:
            lines[name] = measured
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#") or not line.strip())
    files = [f'"{name}" = {line:g}\n' for name, line in sorted(lines.items())]
    return "".join(
        [
            head.rstrip() + "\n\n",
            f"calibration = {budget.calibration:g}\nslack = {budget.slack:g}\n",
            "\n[files]\n",
            *files,
        ]
    )


def calibrate() -> float:
    """CPU seconds of a fixed loop: the median of nine, about 0.3 s in all."""
    table = list(range(1024))
    times = []
    for _ in range(9):
        began = time.process_time()
        total = 0
        for i in range(400_000):
            total += table[i & 1023] ^ i
        times.append(time.process_time() - began)
    return statistics.median(times)


# ---- pytest ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-budget",
        action="store_true",
        help=f"write what the files that ran as a whole took into {BUDGET}, instead of comparing it",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.rootpath / BUDGET
    if path.exists() and not config.option.collectonly:
        config.pluginmanager.register(Bookkeeper(config, path), "budget-bookkeeper")


class Bookkeeper:
    """One in every process of the session; the one that is no worker of xdist judges."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._path = path
        self._root = config.rootpath
        self._spent = Spent()
        self._budget = Budget.read(path)
        self._slowness = calibrate() / self._budget.calibration
        self._tree: WatchedTree | None = None
        self._began = 0.0
        self._shared = 0.0
        self._said: list[str] = []
        runs_tests = hasattr(config, "workerinput") or not config.getoption("numprocesses", None)
        if runs_tests:
            self._tree = WatchedTree()

    # -- counting

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> Iterator[Any]:
        """Longest files first where two run at once, else the last one is a long one, alone."""
        everything = {item.nodeid for item in items}
        result = yield
        self._spent.partial |= {_file(nodeid) for nodeid in everything - {item.nodeid for item in items}}
        if config.getoption("lf", False):  # it leaves tests out before anybody sees them
            self._spent.partial |= {_file(nodeid) for nodeid in everything}
        self._spent.partial |= {_file(arg) for arg in map(self._relative, config.args) if "::" in arg}
        if hasattr(config, "workerinput"):
            items.sort(key=lambda item: -self._budget.lines.get(_file(item.nodeid), math.inf))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
        name = _file(item.nodeid)
        if not self._began:
            self._began, self._shared = self._now(), 0.0
        result = yield
        if nextitem is None or _file(nextitem.nodeid) != name:
            seconds = self._now() - self._began - self._shared
            self._began = 0.0
            if math.isfinite(seconds):  # or the watcher is gone
                self._spent.add(Spent({name: seconds}))
            if seconds > LOOKS_AGAIN:
                self._slowness = max(self._slowness, calibrate() / self._budget.calibration)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
        if fixturedef.scope != "session" or not self._began:
            return (yield)
        before = self._now()
        try:
            return (yield)
        finally:
            self._shared += self._now() - before

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._spent.failed.add(_file(report.nodeid))

    def _now(self) -> float:
        return self._tree.seconds() if self._tree else 0.0

    def _relative(self, arg: str) -> str:
        path, colons, test = arg.partition("::")
        full = (self._root / path).resolve()
        return (full.relative_to(self._root).as_posix() if full.is_relative_to(self._root) else path) + colons + test

    # -- judging

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended; one that crashed leaves nothing, and its files are not judged."""
        if sent := getattr(node, "workeroutput", {}).get("budget"):
            self._slowness = max(self._slowness, sent["slowness"])
            self._spent.add(Spent(sent["seconds"], set(sent["partial"]), set(sent["failed"])))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        config = session.config
        if self._tree:
            self._tree.close()
        if hasattr(config, "workeroutput"):
            spent = self._spent
            config.workeroutput["budget"] = {
                "slowness": self._slowness,
                "seconds": spent.seconds,
                "partial": sorted(spent.partial),
                "failed": sorted(spent.failed),
            }
            return
        if session.shouldstop or session.shouldfail or session.exitstatus not in (0, 1):
            return  # stopped on the way: a file may have been left half done
        whole = self._spent.whole()
        gone = [name for name in self._budget.lines if not (self._root / name).is_file()]
        if config.option.write_budget:
            text = self._path.read_text()
            self._path.write_text(rewritten(text, self._budget, whole, self._slowness, gone))
            self._said = [f"{name}: {seconds:.1f} CPU seconds" for name, seconds in sorted(whole.items())]
            return
        if not {self._relative(arg) for arg in config.args} <= {"tests", "."}:
            gone = []
        if complaints(self._budget, whole, self._slowness, gone):
            self._slowness = max(self._slowness, calibrate() / self._budget.calibration)
        self._said = complaints(self._budget, whole, self._slowness, gone)
        if self._said and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self._said:
            written = terminalreporter.config.option.write_budget
            title = f"written to {BUDGET}, divided by {self._slowness:.2f}" if written else "over budget"
            terminalreporter.section(title, red=not written)
            for line in self._said:
                terminalreporter.line(line)


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]
