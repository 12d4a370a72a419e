"""What both roads of the quickstart need: stages that are said and timed, and what a pre-training wrote."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from commands.pages.page import Section
from commands.quickstart.figures import Pretraining
from launch.errors import LaunchError
from shards.reader import DatasetReader
from t4p.config.tasks import PretrainConfig
from t4p.runs.logs import read_lines


class Stages:
    """Says what begins, and keeps what was done and how long it took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._done: list[Section] = []

    @property
    def sections(self) -> tuple[Section, ...]:
        """What was done, in order."""
        return tuple(self._done)

    @contextmanager
    def stage(self, heading: str, text: str) -> Iterator[None]:
        """One thing that is done inside.

        Args:
            heading: what.
            text: how, one paragraph of the report.
        """
        self._console.print(f"[bold]{len(self._done) + 1}. {heading}[/]")
        started = time.monotonic()
        yield
        self._done.append(Section(heading, text, time.monotonic() - started))


def count_workers() -> int:
    """Two, each on half of the cores; on GPUs no more than there are."""
    import torch

    return min(2, torch.cuda.device_count()) if torch.cuda.is_available() else 2


def override(key: str, value: Any) -> str:
    """`key=value` of a configuration, whatever the value holds: JSON is YAML."""
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def collect_pretraining(config: PretrainConfig) -> Pretraining:
    """What a pre-training wrote.

    Raises:
        LaunchError: the run folder does not hold the steps that were asked for.
    """
    run_dir = Path(config.run.dir)
    steps = read_lines(run_dir / "metrics.jsonl")
    if len(steps) != config.train.num_steps:
        raise LaunchError(
            f"{run_dir / 'metrics.jsonl'} holds {len(steps)} steps, {config.train.num_steps} were asked for"
        )
    num_samples = sum(DatasetReader(url).num_samples for url in config.data.urls)
    return Pretraining(num_samples, steps, read_lines(run_dir / "validation.jsonl"))
