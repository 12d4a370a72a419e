"""A sample that was scored as a scene to look at: its labels, or its objects with their boxes, true and found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from commands.pages.page import format_score
from commands.pages.palette import NO_INSTANCE, NO_LABEL, label_colors
from commands.pages.scene_pair import ColorLayer, LayerBoxes, NamedLayer, ScenePair
from commands.pages.scene_view import CUT_HEIGHT
from t4p.data.boxes import points_inside
from t4p.metrics.detection import box_iou
from t4p.tasks.scored import Objects, ScoredSample

SURE_FROM = 0.25  # score from which an object is shown
SAME_FROM = 0.25  # overlap from which a found object is taken for the true one, and has its colour
TRUTH, PREDICTION = "ground truth", "prediction"
_RIGHT, _WRONG = (222, 222, 224), (20, 20, 22)  # no class has them
_REACH = 0.08  # metres, that a box is larger where points are painted: those given are middles of voxels
_NONE = -1


def show_sample(which: str, sample: ScoredSample, labels: Sequence[str], features: NDArray[np.uint8]) -> ScenePair:
    """A scene with what is true on the left and what the network says on the right.

    Args:
        which: "best", "worst" or whatever it is.
        sample: with at least one voxel.
        labels: of the network.
        features: (V, 3) uint8, its features as colours.
    """
    if isinstance(sample.predicted, Objects) and isinstance(sample.truth, Objects):
        painted = paint_objects(
            sample.points, sample.truth, sample.predicted[sample.predicted.scores >= SURE_FROM], labels
        )
        shown = (
            f" Found are objects with a score of {SURE_FROM:g} or more; one that overlaps a true one of its label has "
            "its colour."
        )
    else:
        assert not isinstance(sample.predicted, Objects)
        assert not isinstance(sample.truth, Objects)
        painted, shown = paint_labels(sample.truth, sample.predicted, labels), ""
    return ScenePair(
        heading=f"The {which}: {sample.key}",
        text=f"{sample.measure} {format_score(sample.score)} %, {len(sample.points):,} voxels.{shown} What is above "
        f"{CUT_HEIGHT:g} m and the near walls are left out.",
        points=sample.points,
        names=painted.names,
        colors=painted.colors,
        layers=(*painted.layers, ColorLayer("features", features)),
        boxes=painted.boxes,
    )


@dataclass(frozen=True, eq=False)
class Painted:
    """Names with their colours (K, 3), what layers paint as which, and the boxes of layers."""

    names: tuple[str, ...]
    colors: NDArray[np.uint8]
    layers: tuple[NamedLayer, ...]
    boxes: tuple[LayerBoxes, ...] = ()


def paint_labels(truth: NDArray[np.int64], predicted: NDArray[np.int64], labels: Sequence[str]) -> Painted:
    """Labels (V,), true and predicted, and where these differ; a truth below 0 is none."""
    unlabelled, right, wrong = range(len(labels), len(labels) + 3)
    known = truth >= 0
    return Painted(
        names=(*labels, "no label", "right", "wrong"),
        colors=np.concatenate([label_colors(labels), np.array([NO_LABEL, _RIGHT, _WRONG], np.uint8)]),
        layers=(
            NamedLayer(TRUTH, np.where(known, truth, unlabelled)),
            NamedLayer(PREDICTION, predicted),
            NamedLayer("right or wrong", np.where(known, np.where(predicted == truth, right, wrong), unlabelled)),
        ),
    )


def paint_objects(points: NDArray[np.float32], truth: Objects, found: Objects, labels: Sequence[str]) -> Painted:
    """Objects among points (V, 3), each in its colour, and their boxes.

    A found one has the colour of the true one that it is; all of a label that are none have one colour.
    """
    names = numbered([labels[label] for label in truth.label_ids])
    partner = match_objects(truth, found)
    stray, which = np.unique(found.label_ids[partner == _NONE], return_inverse=True)
    name_of_found = partner.copy()
    name_of_found[partner == _NONE] = len(names) + which
    names = (*names, *(f"not there: {labels[label]}" for label in stray))
    nothing = len(names)
    colors = np.concatenate([label_colors(names), np.array([NO_INSTANCE], np.uint8)])
    name_of_true = np.arange(len(truth.label_ids))
    return Painted(
        names=(*names, "no object"),
        colors=colors,
        layers=(
            NamedLayer(TRUTH, _surest(points, truth, name_of_true, nothing)),
            NamedLayer(PREDICTION, _surest(points, found, name_of_found, nothing)),
        ),
        boxes=(LayerBoxes(0, truth.boxes, name_of_true), LayerBoxes(1, found.boxes, name_of_found)),
    )


def match_objects(truth: Objects, found: Objects) -> NDArray[np.int64]:
    """(P,) the true object that each found one is, of its label and overlapping by more than SAME_FROM; _NONE for none.

    The surest comes first, and takes the one that it overlaps most of those that are left.
    """
    overlap = _overlaps(truth, found)
    overlap[found.label_ids[:, None] != truth.label_ids] = 0.0
    partner = np.full(len(found.label_ids), _NONE)
    for row in np.argsort(-found.scores, kind="stable"):
        if overlap.shape[1] and overlap[row].max() > SAME_FROM:
            partner[row] = overlap[row].argmax()
            overlap[:, partner[row]] = 0.0
    return partner


def _overlaps(truth: Objects, found: Objects) -> NDArray[np.float64]:
    """(P, T) IoU."""
    if truth.masks is None or found.masks is None:
        return box_iou(found.boxes, truth.boxes)
    shared = found.masks.astype(np.float64) @ truth.masks.astype(np.float64).T
    unions = found.masks.sum(axis=1)[:, None] + truth.masks.sum(axis=1) - shared
    return np.divide(shared, unions, out=np.zeros_like(shared), where=unions > 0)


def _surest(points: NDArray[np.float32], objects: Objects, names: NDArray[np.int64], nothing: int) -> NDArray[np.int64]:
    """(V,) the name of the surest object that each point belongs to or lies in."""
    painted = np.full(len(points), nothing)
    for row in np.argsort(objects.scores, kind="stable"):  # the surest last: a point is its
        if objects.masks is None:
            box = objects.boxes[row] + np.array([0, 0, 0, *3 * [_REACH], 0])
            painted[points_inside(points, box)] = names[row]
        else:
            painted[objects.masks[row]] = names[row]
    return painted


def numbered(labels: Sequence[str]) -> tuple[str, ...]:
    """A name for each object: its label and how many of them there are up to it."""
    seen: Counter[str] = Counter()
    names = []
    for label in labels:
        seen[label] += 1
        names.append(f"{label} {seen[label]}")
    return tuple(names)
