"""What a fine-tuning leaves in its run folder: report.html for people, curves and scores; report.json for programs."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import typer

from commands.bars import progress_bar
from commands.evaluate import BestAndWorst, page_of
from commands.pages.line_chart import Chart, Series
from commands.pages.page import Fact, Page, render_page
from shards.errors import UserError
from shards.results import write_result
from t4p.config.kinds import task_named
from t4p.config.tasks import JobConfig
from t4p.runs.logs import read_lines
from t4p.tasks.afterwards import newest_marked, next_commands, scored_data

REPORTS = ("report.html", "report.json")
WHOLE = ("loss", "loss_task", "loss_aux")  # what every fine-tuning logs; what else begins so is a part of loss_task
_AVERAGED = 0.1  # of the steps at either end, that a loss is the mean of

Lines = Sequence[dict[str, float]]


def write_run_report(
    config: JobConfig, command: str, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write the reports of a run that has ended, over those of an earlier end of it.

    Where there is validation data with labels, the newest checkpoint is scored on it once more: curves have no samples.

    Args:
        command: what was called.
        on_progress: called with (samples done, samples in all).

    Returns:
        The page.

    Raises:
        CheckpointError, ClipError, ConfigError, DataError, ShardError: the network or the data cannot be read any more.
        ResultError: the reports cannot be written.
    """
    page = page_of_run(config, command, on_progress)
    run_dir = Path(config.run.dir)
    for name, text in zip(REPORTS, (render_page(page), json.dumps(page.data, indent=2) + "\n"), strict=True):
        with write_result(run_dir / name, force=True) as partial:
            partial.write_text(text, encoding="utf-8")
    return run_dir / REPORTS[0]


def tell_run_report(config: JobConfig) -> None:
    """Write the reports and say where; a report that cannot be made does not make a training fail that is over."""
    try:
        with progress_bar("scoring for the report") as on_progress:
            page = write_run_report(config, shlex.join(["t4p", *sys.argv[1:]]), on_progress)
    except UserError as error:
        typer.echo(f"  no report: {error}", err=True)
        return
    typer.echo(f"  report: {page}")


def page_of_run(config: JobConfig, command: str, on_progress: Callable[[int, int], None]) -> Page:
    """The report as it is read; arguments and errors of `write_run_report`."""
    run_dir = Path(config.run.dir)
    steps, validation = read_lines(run_dir / "metrics.jsonl"), read_lines(run_dir / "validation.jsonl")
    checkpoint = newest_marked(run_dir / "checkpoints")
    scored = scored_page(config, on_progress)
    losses = loss_names(steps)
    ends = {name: ends_of(steps, name) for name in losses}
    return replace(
        scored,
        title=f"Fine-tuning {run_dir.name}",
        summary=f"Task {config.task}, {len(steps)} steps, global batch size {config.train.global_batch_size}"
        + ("; loss {:.3g} at the beginning, {:.3g} at the end. ".format(*ends["loss"]) if "loss" in ends else ". ")
        + (scored.summary or "No validation data with labels, so nothing was scored."),
        charts=charts_of(config.task, steps, validation),
        facts=(Fact("run folder", str(run_dir)), Fact("data", ", ".join(config.data.urls)), *scored.facts),
        next_commands=() if checkpoint is None else next_commands(config, checkpoint),
        command=command,
        data={
            "run_dir": str(run_dir),
            "task": config.task,
            "num_steps": len(steps),
            "losses": {name: {"first": first, "last": last} for name, (first, last) in ends.items()},
            "validation": validation[-1] if validation else None,
            "scores": scored.data or None,
        },
    )


def scored_page(config: JobConfig, on_progress: Callable[[int, int], None]) -> Page:
    """The page of scores of the newest checkpoint on the validation data; an empty one where there are no labels."""
    if (data := scored_data(config)) is None:
        return Page("", "")
    import torch

    from t4p.tasks.evaluate import score_exported
    from t4p.tasks.model import export_of_run

    exported = export_of_run(Path(config.run.dir), "cuda" if torch.cuda.is_available() else "cpu")
    looked = BestAndWorst()
    scores = score_exported(exported, data, on_progress, looked.take)
    return page_of(config.run.dir, data.shards, exported, scores, looked.counts, looked.scenes(exported))


def charts_of(task: str, steps: Lines, validation: Lines) -> tuple[Chart, ...]:
    """Losses, the parts of the loss of the task where it has some, and the scores of validation."""
    losses, scores = loss_names(steps), task_named(task).scores
    groups = (
        ("Loss", [name for name in losses if name in WHOLE], steps, "loss"),
        ("Parts of loss_task", [name for name in losses if name not in WHOLE], steps, "loss"),
        ("Validation", [name for name in scores if any(name in line for line in validation)], validation, "score"),
    )
    return tuple(
        Chart(title, tuple(Series(name, curve(lines, name)) for name in names), y_label)
        for title, names, lines, y_label in groups
        if names
    )


def loss_names(steps: Lines) -> tuple[str, ...]:
    """What a run logged as losses, in its order."""
    return tuple(name for name in (steps[-1] if steps else ()) if name.startswith("loss"))


def curve(lines: Lines, name: str) -> tuple[tuple[float, float], ...]:
    """(step, value) of every line; nan where it has none."""
    return tuple((line["step"], line.get(name, math.nan)) for line in lines)


def ends_of(steps: Lines, name: str) -> tuple[float, float]:
    """The mean of a loss over the tenth of its steps at either end: one step of a few samples is noisy.

    Args:
        name: of a loss that a line has, at least.
    """
    values = [line[name] for line in steps if name in line]
    few = max(1, round(_AVERAGED * len(values)))
    return fmean(values[:few]), fmean(values[-few:])
