"""What `t4p evaluate` says: a table, or JSON for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from t4p.config.kinds import task_named
from t4p.metrics.semantic import SemanticScores

if TYPE_CHECKING:
    from t4p.models.exported import ExportedNetwork  # loads torch


def scores_as_dict(exported: ExportedNetwork, scores: SemanticScores) -> dict[str, Any]:
    """For `--json`; a class that is not in the data has null."""
    of_network = {"task": exported.config.task, "step": exported.step, "finetuned_share": exported.finetuned_share}
    return {**of_network, **scores.to_json(exported.labels)}


def print_scores(exported: ExportedNetwork, scores: SemanticScores) -> None:
    """A line per class and the means, in per cent."""
    title = task_named(exported.config.task).scored
    if exported.finetuned_share < 1:
        title += f", {exported.finetuned_share:.0%} of the weights fine-tuned and the rest as before"
    table = Table(title=title)
    table.add_column("class")
    for name in ("IoU %", "recall %"):
        table.add_column(name, justify="right")
    for row, label in enumerate(exported.labels):
        table.add_row(label, _percent(scores.iou[row]), _percent(scores.recall[row]))
    table.add_section()
    table.add_row("mean (mIoU, mAcc)", _percent(scores.miou), _percent(scores.macc))
    table.caption = f"{scores.num_points:,} labelled points, {_percent(scores.accuracy)} % of them right"
    Console().print(table)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else "-"
