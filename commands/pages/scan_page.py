"""The page of a scan that a network was asked about: its points to turn, pick and ask, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.pages.kit import render
from commands.pages.page import Fact
from commands.pages.point_cloud import OUTLIERS, draw_cloud

MOST_POINTS = 1_000_000  # of a page: 20 MB
_COSINE_STEPS = 32767


@dataclass(frozen=True, eq=False)
class ScanAnswer:
    """What is known of the points of a scan.

    Attributes:
        title, summary: of the page.
        points: (N, 3) float32 metres, z up, N at least 1.
        colors: (N, 3) uint8, or None.
        labels: names of labels, and
        label_colors: (K, 3) uint8 their colours.
        ids: (N,) which label each point has.
        shares: (N,) in [0, 1], how sure that is.
        row_of_point: (N,) row of `cosines`.
        words: what can be asked in the page.
        embeddings: (W, d) of these words, unit-norm.
        cosines: (Vb, W) of the features with the words.
        others: which of the words a phrase is weighed against.
        label_of: (W,) of each word, the word that is its label, or itself: that one of the others does not count.
        logit_scale: multiplier of the cosines.
        phrases: words that were asked for.
        rule: how a phrase is scored, one sentence.
        facts: what else is worth a line.
        command: what was called.
        again: a command that asks for other words.
        boxes: (P, 7) of the first P labels, as `t4p.metrics.detection` has boxes: drawn along their edges.
    """

    title: str
    summary: str
    points: NDArray[np.float32]
    colors: NDArray[np.uint8] | None
    labels: Sequence[str]
    label_colors: NDArray[np.uint8]
    ids: NDArray[np.int64]
    shares: NDArray[np.float32]
    row_of_point: NDArray[np.int64]
    words: Sequence[str]
    embeddings: NDArray[np.float32]
    cosines: NDArray[np.float32]
    others: Sequence[int]
    label_of: Sequence[int]
    logit_scale: float
    phrases: Sequence[str]
    rule: str
    facts: Sequence[Fact]
    command: str
    again: str
    boxes: NDArray[np.float64]


def render_scan(answer: ScanAnswer) -> str:
    """The whole document; points are drawn by chance where there are more than MOST_POINTS."""
    cloud = draw_cloud(answer.points, answer.boxes, MOST_POINTS)
    chosen = cloud.chosen
    rows = answer.row_of_point[chosen]
    is_wide = len(answer.cosines) > 65536
    colors = grey_by_height(answer.points[chosen]) if answer.colors is None else answer.colors[chosen]
    data: dict[str, Any] = {
        "cloud": cloud.view,
        "has_color": answer.colors is not None,
        "wide_rows": is_wide,
        "labels": [
            {"name": name, "color": color}
            for name, color in zip(answer.labels, answer.label_colors.tolist(), strict=True)
        ],
        "words": list(answer.words),
        "between": np.round(answer.embeddings @ answer.embeddings.T, 6).tolist(),
        "others": list(answer.others),
        "label_of": list(answer.label_of),
        "phrases": list(answer.phrases),
        "logit_scale": answer.logit_scale,
        "again": answer.again,
    }
    blobs: dict[str, NDArray[Any]] = {
        "points": cloud.points,
        "colors": colors,
        "labels": answer.ids[chosen].astype("<u2"),
        "edges": cloud.edges,
        "edge_labels": cloud.box_of_edge.astype("<u2"),
        "shares": np.rint(np.clip(answer.shares[chosen], 0, 1) * 255).astype(np.uint8),
        "rows": rows.astype("<u4" if is_wide else "<u2"),
        "cosines": np.rint(np.clip(answer.cosines, -1, 1) * _COSINE_STEPS).astype("<i2"),
    }
    return render(
        "scan.html",
        data,
        ("viewer.js", "scan.js"),
        title=answer.title,
        summary=answer.summary,
        example=", ".join(answer.words[:2]),
        facts=answer.facts,
        rule=answer.rule,
        command=answer.command,
        blobs={name: array.tobytes() for name, array in blobs.items()},
    )


def grey_by_height(points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, 3) greys, the higher the lighter: for points without a colour."""
    low, high = np.percentile(points[:, 2], (OUTLIERS, 100 - OUTLIERS))
    grey = 90 + 120 * np.clip((points[:, 2] - low) / max(float(high - low), 1e-6), 0, 1)
    return np.repeat(np.rint(grey).astype(np.uint8)[:, None], 3, axis=1)
