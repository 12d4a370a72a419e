"""Showing how a run goes, from the lines it writes to metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsFollower:
    """Reads a growing metrics.jsonl, which a resumed run may first cut back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def newest(self) -> dict[str, float] | None:
        """The last whole line that was added since the previous call, if any."""
        try:
            size = self._path.stat().st_size
            if size < self._offset:
                self._offset = 0
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return None
        whole, newline, _ = added.rpartition(b"\n")
        if not newline:
            return None
        self._offset += len(whole) + 1
        try:
            return json.loads(whole.rpartition(b"\n")[2])
        except ValueError:  # replaced by a longer file meanwhile: begin anew
            self._offset = 0
            return None


class RunProgress:
    """A bar of optimizer steps for every run, the loss beside it; silent when the output is no terminal."""

    def __init__(self, runs: Mapping[str, Path], num_steps: int, console: Console, beginning: str) -> None:
        """
        Args:
            runs: the metrics.jsonl of each, by what is said of it while it trains.
            beginning: what is said until the first step.
        """
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._runs = [
            (said, MetricsFollower(metrics), self._progress.add_task(f"{said}: {beginning}", total=num_steps, note=""))
            for said, metrics in runs.items()
        ]

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.update()
        self._progress.stop()

    def update(self) -> None:
        """Take up what was written since the last call."""
        for said, follower, task in self._runs:
            line = follower.newest()
            if line is not None:
                note = f"loss {line['loss']:.4f}  {line['samples_per_second']:.1f} frames/s"
                self._progress.update(task, completed=line["step"], description=said, note=note)
