"""What `t4p evaluate` says: a table, JSON for programs, or a page."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from commands.pages.page import Fact, Gallery, LegendEntry, Page, Picture, ScoreRow, ScoreTable, Tile
from commands.pages.palette import NO_LABEL, color_labels, label_colors
from commands.pages.scene_view import CUT_HEIGHT, RoomView
from shards.doors.text import shown
from t4p.config.kinds import task_named
from t4p.config.tasks import EvaluateConfig
from t4p.metrics.semantic import SemanticScores
from t4p.tasks.scored import ScoreSheet

if TYPE_CHECKING:
    from t4p.models.exported import ExportedNetwork  # loads torch
    from t4p.tasks.evaluate import ScoredSample

_MOST_SHOWN = 4  # samples on a page
_RIGHT, _WRONG = (222, 222, 224), (20, 20, 22)  # no class has them
RANDOM_TOWERS = "Random towers: the CLIP of this network knows no words, so a zero-shot score of it means nothing."
_WIDTH, _HEIGHT = 480, 360  # pixels of a picture


def scores_as_dict(exported: ExportedNetwork, scores: SemanticScores | ScoreSheet) -> dict[str, Any]:
    """For `--json`; a class that is not in the data has null."""
    of_network = {"task": exported.config.task, "step": exported.step, "finetuned_share": exported.finetuned_share}
    found = scores.to_json() if isinstance(scores, ScoreSheet) else scores.to_json(exported.labels)
    return {**of_network, **found}


def title_of(exported: ExportedNetwork) -> str:
    """What the scores are of."""
    title = task_named(exported.config.task).scored
    if exported.finetuned_share < 1:
        title += f", {exported.finetuned_share:.0%} of the weights fine-tuned and the rest as before"
    return title


def has_random_towers(exported: ExportedNetwork) -> bool:
    """Whether what it says of words means nothing."""
    return exported.config.model.clip.pretrained == "random"


def print_scores(exported: ExportedNetwork, scores: SemanticScores | ScoreSheet) -> None:
    """A line per class and the means, in per cent."""
    table = _table_of_sheet(exported, scores) if isinstance(scores, ScoreSheet) else _table_of(exported, scores)
    Console().print(table)
    if has_random_towers(exported):
        Console().print(RANDOM_TOWERS)


def _table_of_sheet(exported: ExportedNetwork, sheet: ScoreSheet) -> Table:
    table = Table(title=title_of(exported), caption=sheet.protocol)
    table.add_column("class")
    for name in sheet.columns:
        table.add_column(f"{name} %", justify="right")
    for row in sheet.rows:
        table.add_row(escape(shown(row.label)), *map(_percent, row.values))
    table.add_section()
    table.add_row("mean", *map(_percent, sheet.means))
    return table


def _table_of(exported: ExportedNetwork, scores: SemanticScores) -> Table:
    table = Table(title=title_of(exported))
    table.add_column("class")
    for name in ("IoU %", "recall %"):
        table.add_column(name, justify="right")
    for row, label in enumerate(exported.labels):
        table.add_row(escape(shown(label)), _percent(scores.iou[row]), _percent(scores.recall[row]))
    table.add_section()
    table.add_row("mean (mIoU, mAcc)", _percent(scores.miou), _percent(scores.macc))
    table.caption = f"{scores.num_points:,} points, {_percent(scores.accuracy)} % right"
    return table


class ShownSamples:
    """Keeps a few samples from all over the datasets, for the page."""

    def __init__(self) -> None:
        self.samples: list[ScoredSample] = []

    def take(self, sample: ScoredSample) -> None:
        """Look at a sample; keep it if it is one of those to show."""
        wanted = {place * sample.num_samples // _MOST_SHOWN for place in range(_MOST_SHOWN)}
        if sample.position in wanted and len(sample.points):
            self.samples.append(sample)


def page_of(
    config: EvaluateConfig, exported: ExportedNetwork, scores: SemanticScores | ScoreSheet, shown: ShownSamples
) -> Page:
    """The page as it is read."""
    if isinstance(scores, ScoreSheet):
        return _page_of_sheet(config, exported, scores)
    labels = exported.labels
    by_class = tuple(ScoreRow(label, (scores.iou[row], scores.recall[row])) for row, label in enumerate(labels))
    network = Path(config.model.exported).name
    return Page(
        title=f"Scores of {network}",
        summary=f"{title_of(exported)}; ScanNet's protocol on {scores.num_points:,} labelled points."
        + (f" {RANDOM_TOWERS}" if has_random_towers(exported) else ""),
        tiles=(
            Tile("mean IoU", f"{_percent(scores.miou)} %", "over the classes that are there"),
            Tile("mean recall", f"{_percent(scores.macc)} %", "over the classes that are there"),
            Tile("points that are right", f"{_percent(scores.accuracy)} %"),
        ),
        galleries=tuple(_gallery(sample, labels) for sample in shown.samples),
        tables=(
            ScoreTable("By class", "One confusion matrix over all samples.", "class", ("IoU", "recall"), by_class),
        ),
        facts=_facts(config, exported),
        data=scores_as_dict(exported, scores),
    )


def _page_of_sheet(config: EvaluateConfig, exported: ExportedNetwork, sheet: ScoreSheet) -> Page:
    """Of a network that finds objects."""
    by_class = tuple(ScoreRow(row.label, row.values) for row in sheet.rows)
    return Page(
        title=f"Scores of {Path(config.model.exported).name}",
        summary=f"{title_of(exported)}; {sheet.protocol}."
        + (f" {RANDOM_TOWERS}" if has_random_towers(exported) else ""),
        tiles=tuple(
            Tile(f"mean {name}", f"{_percent(value)} %", "over the classes that are there")
            for name, value in zip(sheet.columns, sheet.means, strict=True)
        ),
        tables=(ScoreTable("By class", sheet.protocol, "class", sheet.columns, by_class),),
        facts=_facts(config, exported),
        data=scores_as_dict(exported, sheet),
    )


def _facts(config: EvaluateConfig, exported: ExportedNetwork) -> tuple[Fact, ...]:
    """What was scored, on what."""
    return (
        Fact("network", config.model.exported),
        Fact("task and step", f"{exported.config.task}, step {exported.step}"),
        *(Fact("dataset", url) for url in config.data.shards),
    )


def _gallery(sample: ScoredSample, labels: tuple[str, ...]) -> Gallery:
    """One sample: the truth, what was said, and where that was wrong."""
    view = RoomView.of(sample.points, _WIDTH, _HEIGHT)
    known = (sample.truth >= 0) & (sample.truth < len(labels))
    right = known & (sample.predicted == sample.truth)
    faults = np.array([NO_LABEL, _WRONG, _RIGHT], np.uint8)[np.where(known, 1 + right, 0)]
    share = f"{right.sum() / known.sum():.0%}" if known.any() else "none"
    present = np.unique(np.concatenate([sample.predicted, sample.truth[known]]))
    legend = [
        LegendEntry(label, (int(color[0]), int(color[1]), int(color[2])))
        for row, (label, color) in enumerate(zip(labels, label_colors(labels), strict=True))
        if row in present
    ]
    return Gallery(
        heading=sample.key,
        text=f"{len(sample.points):,} voxels; what is above {CUT_HEIGHT:g} m and the two near walls are left out.",
        pictures=(
            Picture("truth", "the class of every voxel", view.draw(color_labels(sample.truth, labels))),
            Picture("what the network says", "the predicted class", view.draw(color_labels(sample.predicted, labels))),
            Picture(f"right: {share} (black: wrong)", "where the prediction is wrong", view.draw(faults)),
        ),
        legend=(*legend, LegendEntry("no label", NO_LABEL)),
        small=True,
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
