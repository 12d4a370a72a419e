"""A scene of a report on two canvases that turn together: what is true beside what was said (templates/scenes.js)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.pages.point_cloud import draw_cloud
from commands.pages.scene_view import CUT_HEIGHT, slope_light

MOST_POINTS = 150_000  # of a scene: 3 MB of its page
_LIT_SPACINGS = 4.5  # edge of a cell that light is computed in, in distances between neighbours


@dataclass(frozen=True, eq=False)
class NamedLayer:
    """One way to paint the points of a scene: each as one of its names, ids (N,)."""

    name: str
    ids: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ColorLayer:
    """One way to paint the points of a scene: each in a colour of its own, (N, 3) uint8."""

    name: str
    colors: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class LayerBoxes:
    """Boxes that are drawn while a layer is shown.

    Attributes:
        layer: its place among the layers.
        boxes: (P, 7) as `t4p.metrics.detection` has boxes, metres.
        ids: (P,) names of the scene, in whose colours they are drawn.
    """

    layer: int
    boxes: NDArray[np.float64]
    ids: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ScenePair:
    """A scene and what it can be painted as; the canvases begin with the first two layers.

    Attributes:
        points: (N, 3) float32 metres, z up, N at least 1.
        names, colors: what layers paint points as, and (K, 3) uint8 the colour of each.
        layers: two or more.
        boxes: of some layers.
    """

    heading: str
    text: str
    points: NDArray[np.float32]
    names: Sequence[str]
    colors: NDArray[np.uint8]
    layers: Sequence[NamedLayer | ColorLayer]
    boxes: Sequence[LayerBoxes] = ()


def draw_pair(pair: ScenePair) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What the script of a page wants to know of a scene: for JSON, and arrays by the names of their elements."""
    boxes = np.concatenate([np.zeros((0, 7)), *(each.boxes for each in pair.boxes)])
    names = np.concatenate([np.zeros(0, np.int64), *(each.ids for each in pair.boxes)])
    layers = np.repeat([each.layer for each in pair.boxes], [len(each.boxes) for each in pair.boxes])
    cloud = draw_cloud(pair.points, boxes, MOST_POINTS, CUT_HEIGHT)
    # Squared, because nothing else darkens edges here, as it does in a picture.
    light = slope_light(pair.points.astype(np.float64), _LIT_SPACINGS * cloud.view["spacing"]) ** 2
    arrays: dict[str, NDArray[Any]] = {
        "points": cloud.points,
        "light": np.rint(255 * light[cloud.chosen]).astype(np.uint8),
        "edges": cloud.edges,
        "edge-names": names[cloud.box_of_edge].astype("<u2"),
        "edge-layers": layers.astype(np.uint8)[cloud.box_of_edge],
    }
    for place, layer in enumerate(pair.layers):
        painted = layer.ids.astype("<u2") if isinstance(layer, NamedLayer) else layer.colors
        arrays[f"layer-{place}"] = painted[cloud.chosen]
    named = zip(pair.names, pair.colors.tolist(), strict=True)
    data = {
        "cloud": cloud.view,
        "names": [{"name": name, "color": color} for name, color in named],
        "layers": [{"name": layer.name, "has_names": isinstance(layer, NamedLayer)} for layer in pair.layers],
    }
    return data, {name: array.tobytes() for name, array in arrays.items()}
