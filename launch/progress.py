"""Showing how trainings go: a live display on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from t4p.config.kinds import task_named
from t4p.config.tasks import JobConfig
from t4p.runs.checkpoint import step_of
from t4p.runs.progress import PlainLines, Progress, Show, Tracker
from t4p.tasks.afterwards import newest_marked

REDRAW_EVERY = 0.2  # seconds
CHECKPOINT_EVERY = (
    1.0  # seconds between two looks for a new checkpoint, which a network file system may be slow to list
)
_GAP, _INDENT = "   ", "  "  # between and before the figures below a bar
MOST_LINES = 100  # of a file that has grown: what rates are taken over, and more


class GrowingLines:
    """Reads a growing file of JSON lines, which a resumed run may first cut back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def added(self) -> list[dict[str, float]]:
        """The last of the whole lines that were added since the previous call."""
        try:
            size = self._path.stat().st_size
            if size < self._offset:
                self._offset = 0
            with self._path.open("rb") as file:
                file.seek(self._offset)
                added = file.read()
        except OSError:
            return []
        whole, newline, _ = added.rpartition(b"\n")
        if not newline:
            return []
        self._offset += len(whole) + 1
        try:
            return [json.loads(line) for line in whole.splitlines()[-MOST_LINES:]]
        except ValueError:  # replaced by a longer file meanwhile: begin anew
            self._offset = 0
            return []


class RunFollower:
    """Follows a training of other processes by what it writes into its run folder."""

    def __init__(self, config: JobConfig, show: Show) -> None:
        """
        Args:
            show: told how it goes, whenever something has been written.
        """
        self._run_dir = Path(config.run.dir).absolute()
        self._metrics = GrowingLines(self._run_dir / "metrics.jsonl")
        self._validation = GrowingLines(self._run_dir / "validation.jsonl")
        self._tracker = Tracker(config.train.num_steps, task_named(config.task).scores)
        self._metrics.added()  # of an earlier launch: what is taken up again is written again
        self._looked_at = -math.inf
        self._show = show
        self._told: Progress | None = None

    def update(self, *, to_the_end: bool = False) -> None:
        """Take up what was written since the last call.

        Args:
            to_the_end: look at everything, however lately that was done: the training is over.
        """
        for metrics in self._metrics.added():
            self._tracker.step(metrics)
        for scores in self._validation.added():
            self._tracker.validated(scores)
        if to_the_end or time.monotonic() - self._looked_at >= CHECKPOINT_EVERY:
            self._looked_at = time.monotonic()
            if (step := self._newest_step()) is not None:
                self._tracker.saved(step)
        if (progress := self._tracker.progress) is not None and progress != self._told:
            self._told = progress
            self._show(progress)

    def _newest_step(self) -> int | None:
        newest = newest_marked(self._run_dir / "checkpoints")
        return None if newest is None else step_of(newest)


class _LiveRuns:
    """A bar and figures for every training, redrawn in place.

    Nothing is drawn from a thread: the process that draws may train, and fork its loaders.
    """

    def __init__(self, names: Sequence[str], console: Console, beginning: str) -> None:
        self._progress: dict[str, Progress | None] = dict.fromkeys(names)
        self._beginning = beginning
        self._console = console
        self._drawn_at = 0.0
        self.live = Live(console=console, auto_refresh=False, get_renderable=self._draw)

    def show(self, name: str, progress: Progress) -> None:
        self._progress[name] = progress
        now = time.monotonic()
        if now - self._drawn_at >= REDRAW_EVERY or progress.is_last:
            self._drawn_at = now
            self.live.refresh()

    def _draw(self) -> Group:
        width = self._console.width
        return Group(*(_draw_run(name, progress, self._beginning, width) for name, progress in self._progress.items()))


def _draw_run(name: str, progress: Progress | None, beginning: str, width: int) -> Group | Text:
    if progress is None:
        return Text(f"{name}: {beginning}" if name else beginning)
    head = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=progress.num_steps, completed=progress.step, width=24)
    head.add_row(*([Text(name)] if name else []), bar, Text(progress.where), Text(f"{progress.left} left"))
    lines = [""]
    for figure in progress.figures:
        if lines[-1] and len(lines[-1]) + len(_GAP) + len(figure) > width - len(_INDENT):
            lines.append("")
        lines[-1] += f"{_GAP if lines[-1] else _INDENT}{figure}"
    return Group(head, *(Text(line, no_wrap=True) for line in lines))


@contextmanager
def show_trainings(names: Sequence[str], console: Console, beginning: str) -> Iterator[Mapping[str, Show]]:
    """Show trainings while the block runs: live on a terminal, elsewhere in a plain line now and then.

    Args:
        names: what each is called, where there are several; "" where there is one.
        beginning: what is shown until the first step.

    Yields:
        By name, what is to be told how it goes.
    """
    if not console.is_terminal or console.is_dumb_terminal:

        def write(line: str) -> None:
            console.print(line, soft_wrap=True, highlight=False, markup=False)

        yield {name: PlainLines(write, f"{name}: " if name else "") for name in names}
        return
    runs = _LiveRuns(names, console, beginning)

    def teller(name: str) -> Show:
        return lambda progress: runs.show(name, progress)

    with runs.live:
        runs.live.refresh()
        yield {name: teller(name) for name in names}


@contextmanager
def follow_trainings(
    configs: Mapping[str, JobConfig], console: Console, beginning: str
) -> Iterator[Callable[[], None]]:
    """Show trainings of other processes while the block runs.

    Args:
        configs: their configurations, by name as in `show_trainings`.

    Yields:
        What is to be called a few times per second.
    """
    with show_trainings(list(configs), console, beginning) as shows:
        followers = [RunFollower(config, shows[name]) for name, config in configs.items()]

        def update(**keywords: Any) -> None:
            for follower in followers:
                follower.update(**keywords)

        try:
            yield update
        finally:
            update(to_the_end=True)
