"""What `t4p evaluate` says: a table, JSON for programs, or a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from commands.pages.page import ConfusionMatrix, Fact, Page, ScoreRow, ScoreTable, Tile
from commands.pages.palette import color_features
from commands.pages.scene_pair import ScenePair
from commands.pages.scored_scene import show_sample
from shards.doors.text import shown
from t4p.config.kinds import task_named
from t4p.metrics.semantic import SemanticScores
from t4p.tasks.scored import ScoredSample, ScoreSheet

if TYPE_CHECKING:
    from t4p.models.exported import ExportedNetwork  # loads torch

RANDOM_TOWERS = "Random towers: the CLIP of this network knows no words, so a zero-shot score of it means nothing."
OF_PRESENT = "over the classes that are there"
OF_FEATURES = "h3D_hat of bottleneck voxels; red, green and blue are its three principal components in the scenes shown"


def scores_as_dict(exported: ExportedNetwork, scores: SemanticScores | ScoreSheet) -> dict[str, Any]:
    """For `--json`; a class that is not in the data has null."""
    of_network = {"task": exported.config.task, "step": exported.step, "finetuned_share": exported.finetuned_share}
    found = scores.to_json() if isinstance(scores, ScoreSheet) else scores.to_json(exported.labels)
    return {**of_network, **found}


def title_of(exported: ExportedNetwork, scores: SemanticScores | ScoreSheet) -> str:
    """What the scores are of."""
    task = task_named(exported.config.task)
    has_head = task.finds != "labels" or not isinstance(scores, ScoreSheet)
    title = task.scored if has_head else "Instances without a head"
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
    table = Table(title=title_of(exported, sheet), caption=sheet.protocol)
    table.add_column("class")
    for name in sheet.columns:
        table.add_column(f"{name} %", justify="right")
    for row in sheet.rows:
        table.add_row(escape(shown(row.label)), *map(_percent, row.values))
    table.add_section()
    table.add_row("mean", *map(_percent, sheet.means))
    return table


def _table_of(exported: ExportedNetwork, scores: SemanticScores) -> Table:
    table = Table(title=title_of(exported, scores))
    table.add_column("class")
    for name in ("IoU %", "recall %"):
        table.add_column(name, justify="right")
    for row, label in enumerate(exported.labels):
        table.add_row(escape(shown(label)), _percent(scores.iou[row]), _percent(scores.recall[row]))
    table.add_section()
    table.add_row("mean (mIoU, mAcc)", _percent(scores.miou), _percent(scores.macc))
    table.caption = f"{scores.num_points:,} points, {_percent(scores.accuracy)} % right"
    return table


class BestAndWorst:
    """Keeps the samples with the highest and the lowest score, for the page, and adds up what labels are taken for."""

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] | None = None  # as ConfusionMatrix has them; None of objects
        self._best: ScoredSample | None = None
        self._worst: ScoredSample | None = None

    def take(self, sample: ScoredSample) -> None:
        """Look at a sample; of equal scores the first is kept."""
        if sample.counts is not None:
            self.counts = sample.counts if self.counts is None else self.counts + sample.counts
        if not math.isfinite(sample.score) or not len(sample.points):
            return
        if self._best is None or sample.score > self._best.score:
            self._best = sample
        if self._worst is None or sample.score < self._worst.score:
            self._worst = sample

    def scenes(self, exported: ExportedNetwork) -> tuple[ScenePair, ...]:
        """Both as scenes, one where they are the same; features are coloured alike in both."""
        from t4p.tasks.evaluate import features_of_voxels

        if self._best is None or self._worst is None:
            return ()
        kept = {"best": self._best, "worst": self._worst}
        if self._best is self._worst:
            kept = {"only one": self._best}
        features = [features_of_voxels(exported, sample.batch) for sample in kept.values()]
        colors, _ = color_features(np.concatenate(features))
        of_samples = np.split(colors, np.cumsum([len(each) for each in features])[:-1])
        return tuple(
            show_sample(which, sample, exported.labels, own)
            for (which, sample), own in zip(kept.items(), of_samples, strict=True)
        )


def page_of(
    network: str,
    urls: Sequence[str],
    exported: ExportedNetwork,
    scores: SemanticScores | ScoreSheet,
    counts: NDArray[np.int64] | None,
    scenes: tuple[ScenePair, ...],
) -> Page:
    """The page as it is read.

    Args:
        network: where it came from, a path.
        urls: the datasets that it was scored on.
        counts, scenes: of BestAndWorst.
    """
    parts = _parts_of_sheet(scores) if isinstance(scores, ScoreSheet) else _parts_of(exported.labels, scores)
    confusion = None if counts is None else ConfusionMatrix("What is taken for what", "", exported.labels, counts)
    return Page(
        title=f"Scores of {Path(network).name}",
        summary=f"{title_of(exported, scores)}; {parts.protocol}."
        + (f" {RANDOM_TOWERS}" if has_random_towers(exported) else ""),
        tiles=parts.tiles,
        scenes=scenes,
        tables=(parts.table,),
        confusion=confusion,
        facts=(
            Fact("network", network),
            Fact("task and step", f"{exported.config.task}, step {exported.step}"),
            *(Fact("dataset", url) for url in urls),
            *((Fact("features", OF_FEATURES),) if scenes else ()),
        ),
        data=scores_as_dict(exported, scores),
    )


@dataclass(frozen=True)
class _Parts:
    """What differs between labels and objects."""

    protocol: str
    tiles: tuple[Tile, ...]
    table: ScoreTable


def _parts_of(labels: Sequence[str], scores: SemanticScores) -> _Parts:
    by_class = tuple(ScoreRow(label, (scores.iou[row], scores.recall[row])) for row, label in enumerate(labels))
    return _Parts(
        protocol=f"ScanNet's protocol on {scores.num_points:,} labelled points",
        tiles=(
            Tile("mean IoU", f"{_percent(scores.miou)} %", OF_PRESENT),
            Tile("mean recall", f"{_percent(scores.macc)} %", OF_PRESENT),
            Tile("points that are right", f"{_percent(scores.accuracy)} %"),
        ),
        table=ScoreTable("By class", "Over all samples together.", "class", ("IoU", "recall"), by_class),
    )


def _parts_of_sheet(sheet: ScoreSheet) -> _Parts:
    """Of a network that finds objects."""
    return _Parts(
        protocol=sheet.protocol,
        tiles=tuple(
            Tile(f"mean {name}", f"{_percent(value)} %", OF_PRESENT)
            for name, value in zip(sheet.columns, sheet.means, strict=True)
        ),
        table=ScoreTable(
            "By class",
            "Over all samples together.",
            "class",
            sheet.columns,
            tuple(ScoreRow(row.label, row.values) for row in sheet.rows),
        ),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
