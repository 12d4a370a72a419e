"""Points as the viewer of a page takes them (templates/viewer.js): few enough, in the order of drawing, as integers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_MOVING = 120_000  # points drawn while the view moves
NUM_ON_PHONE = 200_000  # that a phone draws at all
OUTLIERS = 1.0  # per cent of the points at either end of an axis that are not what the view begins with
_CELL = 0.05  # metres
_EDGE_STEP = 0.008  # metres between the points that draw the edge of a box
_STEPS = 65535  # of the box, along each axis
_WALL_THICKNESS = 0.15  # metres, of what is left out towards the reader: the noise of a depth camera, and voxels
_FLOOR_THICKNESS = 0.1  # metres


@dataclass(frozen=True, eq=False)
class DrawnCloud:
    """Points that were chosen and put in order.

    Attributes:
        chosen: (M,) int64 rows of the points that are drawn, as `drawing_order`.
        points: (M, 3) little-endian uint16, steps of the box around all points.
        edges: (E, 3) likewise, the points that boxes are drawn by.
        box_of_edge: (E,) int64.
        view: what the viewer wants to know of them, for JSON.
    """

    chosen: NDArray[np.int64]
    points: NDArray[np.uint16]
    edges: NDArray[np.uint16]
    box_of_edge: NDArray[np.int64]
    view: dict[str, Any]


def draw_cloud(
    points: NDArray[np.float32], boxes: NDArray[np.float64], most: int, cut_height: float | None = None
) -> DrawnCloud:
    """Choose points, by chance where there are too many.

    Args:
        points: (N, 3) metres, z up, N at least 1.
        boxes: (P, 7) as `t4p.metrics.detection` has boxes, metres: drawn along their edges.
        most: points.
        cut_height: metres above the floor; what is higher is left out, and what stands between the reader and the
            middle at the bounds of the points. None leaves out nothing.
    """
    edges = [edges_of_box(box) for box in boxes]
    of_boxes = np.concatenate([np.zeros((0, 3)), *edges])
    chosen = drawing_order(points, most)
    ends = np.concatenate([points, of_boxes])
    low, high = ends.min(axis=0).astype(np.float64), ends.max(axis=0).astype(np.float64)
    step = np.maximum(high - low, 1e-6) / _STEPS
    near, far = np.percentile(points[chosen[:100_000]], (OUTLIERS, 100 - OUTLIERS), axis=0)
    middle, cut = (near + far) / 2, None
    if cut_height is not None:
        far[2] = min(far[2], near[2] + cut_height)
        middle[2] = 0.75 * near[2] + 0.25 * far[2]  # of what is left most lies low
        thickness = np.minimum(_WALL_THICKNESS, 0.05 * (far - near))  # a thin cloud is not all wall
        cut = {
            "low": (near + thickness)[:2].tolist(),
            "high": (far - thickness)[:2].tolist(),
            "floor": float(near[2]) + _FLOOR_THICKNESS,
            "height": float(near[2]) + cut_height,
        }
    view: dict[str, Any] = {
        "num_points": len(chosen),
        "num_moving": NUM_MOVING,
        "num_on_phone": NUM_ON_PHONE,
        "num_scanned": len(points),
        "low": low.tolist(),
        "step": step.tolist(),
        "middle": middle.tolist(),
        "radius": max(float(np.linalg.norm(far - near)) / 2, 0.05),
        "spacing": _spacing(points[chosen]),
        "cut": cut,
    }
    return DrawnCloud(
        chosen=chosen,
        points=np.rint((points[chosen] - low) / step).astype("<u2"),
        edges=np.rint((of_boxes - low) / step).astype("<u2"),
        box_of_edge=np.repeat(np.arange(len(edges)), [len(edge) for edge in edges]),
        view=view,
    )


def edges_of_box(box: NDArray[np.float64]) -> NDArray[np.float64]:
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


def drawing_order(points: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """(M,) rows drawn by chance, in three parts that are each a fair sample: what is drawn while the view moves, what a
    phone draws beside it, and the rest.

    Args:
        points: (N, 3) metres.
        most: M is at most this.

    Within a part neighbours in space stand together: they are neighbours in the picture too, and in the cache.
    """
    chosen = np.random.default_rng(0).permutation(len(points))[:most]
    cells = np.floor((points[chosen] - points.min(axis=0)) / _CELL).astype(np.int64)
    parts = np.searchsorted([NUM_MOVING, NUM_ON_PHONE], np.arange(len(chosen)), side="right")
    return chosen[np.lexsort((*cells.T, parts))]


def _spacing(points: NDArray[np.float32]) -> float:
    """Metres between neighbours, nearly, in a cloud that lies on surfaces: from how many share a cell."""
    extent = float((points.max(axis=0) - points.min(axis=0)).max())
    if len(points) < 2 or extent <= 0:
        return 0.01
    cell = extent / 64
    num_cells = len(np.unique(np.floor(points / cell).astype(np.int64), axis=0))
    return cell / max(1.0, float(np.sqrt(len(points) / num_cells)))
