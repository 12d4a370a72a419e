"""What a machine far slower than usual gets done in time: files that begin too late are left out.

`.ci/run` may take so long and not longer. With T4P_TESTS_BEGIN_BY set, to seconds since the epoch, short files come
first, so that many small tests are never given up for one large one. What is left out is skipped, with this reason, and
counted in the last line; on a machine three times slower than the one of tests/budget.toml nothing is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

import pytest

VARIABLE = "T4P_TESTS_BEGIN_BY"


def deadline_of(environ: Mapping[str, str]) -> float | None:
    """Seconds since the epoch; None where nothing is ever left out."""
    return float(environ[VARIABLE]) if environ.get(VARIABLE) else None


class Deadline:
    """A plugin of pytest, in every process that runs tests."""

    def __init__(self, deadline: float) -> None:
        """Nothing has begun.

        Args:
            deadline: seconds since the epoch.
        """
        self._deadline = deadline
        self._begun: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip the tests of a file that begins too late."""
        name = item.nodeid.partition("::")[0]
        if name not in self._begun and time.time() > self._deadline:
            pytest.skip("left out: this machine is too slow to do everything in time")
        self._begun.add(name)


class ToldAtOnce:
    """A plugin of pytest, in the process that has the terminal: who fails is named when it does, not at the end."""

    def __init__(self, config: pytest.Config) -> None:
        """Nothing has failed."""
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name a test that failed, with what it died of."""
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = (crash.message if crash else report.longreprtext).splitlines() or [""]
            terminal.write_line(f"\n{report.nodeid}: {said[0]}")


def pytest_configure(config: pytest.Config) -> None:
    """For the runs that have little time, and the ones whose end nobody may see."""
    if (deadline := deadline_of(os.environ)) is not None:
        config.pluginmanager.register(Deadline(deadline), "deadline-keeper")
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ToldAtOnce(config), "failures-at-once")
