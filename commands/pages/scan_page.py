"""The page of a scan that a network was asked about: its points to turn, pick and ask, in one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.pages.kit import render
from commands.pages.page import Fact

MOST_POINTS = 1_000_000  # of a page: 20 MB
NUM_MOVING = 120_000  # of them, drawn while the view moves
NUM_ON_PHONE = 200_000  # of them, that a phone draws at all
_CELL = 0.05  # metres
_EDGE_STEP = 0.008  # metres between the points that draw the edge of a box
_STEPS = 65535  # of the box, along each axis
_COSINE_STEPS = 32767
_OUTLIERS = 1.0  # per cent of the points at either end of an axis that are not what the view begins with


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
    logit_scale: float
    phrases: Sequence[str]
    rule: str
    facts: Sequence[Fact]
    command: str
    again: str
    boxes: NDArray[np.float64]


def render_scan(answer: ScanAnswer) -> str:
    """The whole document; points are drawn by chance where there are more than MOST_POINTS."""
    num_scanned = len(answer.points)
    answer = _with_edges(answer)
    points = answer.points
    chosen = drawing_order(points)
    low, high = points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64)
    step = np.maximum(high - low, 1e-6) / _STEPS
    near, far = np.percentile(points[chosen[:100_000]], (_OUTLIERS, 100 - _OUTLIERS), axis=0)
    rows = answer.row_of_point[chosen]
    is_wide = len(answer.cosines) > _STEPS + 1
    data: dict[str, Any] = {
        "num_points": len(chosen),
        "num_moving": NUM_MOVING,
        "num_on_phone": NUM_ON_PHONE,
        "num_scanned": num_scanned,
        "low": low.tolist(),
        "step": step.tolist(),
        "middle": ((near + far) / 2).tolist(),
        "radius": max(float(np.linalg.norm(far - near)) / 2, 0.05),
        "spacing": _spacing(points[chosen]),
        "has_color": answer.colors is not None,
        "wide_rows": is_wide,
        "labels": [
            {"name": name, "color": color}
            for name, color in zip(answer.labels, answer.label_colors.tolist(), strict=True)
        ],
        "words": list(answer.words),
        "between": np.round(answer.embeddings @ answer.embeddings.T, 6).tolist(),
        "others": list(answer.others),
        "phrases": list(answer.phrases),
        "logit_scale": answer.logit_scale,
        "again": answer.again,
    }
    blobs = {
        "points": np.rint((points[chosen] - low) / step).astype("<u2"),
        "colors": grey_by_height(points[chosen]) if answer.colors is None else answer.colors[chosen],
        "labels": answer.ids[chosen].astype("<u2"),
        "shares": np.rint(np.clip(answer.shares[chosen], 0, 1) * 255).astype(np.uint8),
        "rows": rows.astype("<u4" if is_wide else "<u2"),
        "cosines": np.rint(np.clip(answer.cosines, -1, 1) * _COSINE_STEPS).astype("<i2"),
    }
    return render(
        "scan.html",
        data,
        "scan.js",
        title=answer.title,
        summary=answer.summary,
        example=", ".join(answer.words[:2]),
        facts=answer.facts,
        rule=answer.rule,
        command=answer.command,
        blobs={name: array.tobytes() for name, array in blobs.items()},
    )


def _with_edges(answer: ScanAnswer) -> ScanAnswer:
    """The edges of boxes as points of their labels: what turns and hides points does so with them."""
    if not len(answer.boxes):
        return answer
    edges = [_edges_of(box) for box in answer.boxes]
    label = np.repeat(np.arange(len(edges)), [len(edge) for edge in edges])
    added = np.concatenate(edges).astype(np.float32)
    colors = None if answer.colors is None else np.concatenate([answer.colors, answer.label_colors[label]])
    return replace(
        answer,
        points=np.concatenate([answer.points, added]),
        colors=colors,
        ids=np.concatenate([answer.ids, label]),
        shares=np.concatenate([answer.shares, np.ones(len(added), np.float32)]),
        row_of_point=np.concatenate([answer.row_of_point, np.zeros(len(added), np.int64)]),
    )


def _edges_of(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """(E, 3) points along the twelve edges of a box (7,)."""
    corners = np.array(list(product((-0.5, 0.5), repeat=3))) * box[3:6]
    pairs = [(corner, corner | bit) for bit in (1, 2, 4) for corner in range(8) if not corner & bit]
    along = []
    for first, second in pairs:
        share = np.linspace(0, 1, 2 + int(np.linalg.norm(corners[second] - corners[first]) / _EDGE_STEP))[:, None]
        along.append(corners[first] + share * (corners[second] - corners[first]))
    x, y, z = np.concatenate(along).T
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=1) + box[:3]


def drawing_order(points: NDArray[np.float32]) -> NDArray[np.int64]:
    """(M,) rows drawn by chance, in three parts that are each a fair sample: what is drawn while the view moves, what a
    phone draws beside it, and the rest.

    Within a part neighbours in space stand together: they are neighbours in the picture too, and in the cache.
    """
    chosen = np.random.default_rng(0).permutation(len(points))[:MOST_POINTS]
    cells = np.floor((points[chosen] - points.min(axis=0)) / _CELL).astype(np.int64)
    parts = np.searchsorted([NUM_MOVING, NUM_ON_PHONE], np.arange(len(chosen)), side="right")
    return chosen[np.lexsort((*cells.T, parts))]


def grey_by_height(points: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(N, 3) greys, the higher the lighter: for points without a colour."""
    low, high = np.percentile(points[:, 2], (_OUTLIERS, 100 - _OUTLIERS))
    grey = 90 + 120 * np.clip((points[:, 2] - low) / max(float(high - low), 1e-6), 0, 1)
    return np.repeat(np.rint(grey).astype(np.uint8)[:, None], 3, axis=1)


def _spacing(points: NDArray[np.float32]) -> float:
    """Metres between neighbours, nearly, in a cloud that lies on surfaces: from how many share a cell."""
    extent = float((points.max(axis=0) - points.min(axis=0)).max())
    if len(points) < 2 or extent <= 0:
        return 0.01
    cell = extent / 64
    num_cells = len(np.unique(np.floor(points / cell).astype(np.int64), axis=0))
    return cell / max(1.0, float(np.sqrt(len(points) / num_cells)))
