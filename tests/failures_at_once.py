"""Who fails is named when it does, where CI runs: what is ended from outside prints no summary."""

from __future__ import annotations

import os

import pytest


class FailuresAtOnce:
    """A plugin of pytest, in the process that has the terminal."""

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
    if os.environ.get("CI") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FailuresAtOnce(config), "failures-at-once")
