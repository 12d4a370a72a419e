"""VoteNet's protocol for oriented boxes: average precision and recall by class, exact overlaps, suppression.

A box is (cx, cy, cz, dx, dy, dz, yaw): centre and full sizes in metres, radians counter-clockwise about +z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t4p.metrics.labels import Ids, Scores, check_class_of_each, check_scored, mean

LARGEST = 1e9  # metres; what is larger is a mistake, and its volume might not be finite
SMALLEST = 1e-200  # metres; LARGEST divided by it is finite
PAIRS_AT_ONCE = 8192  # so that what is computed of them stays in a processor's cache

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Boxes:
    """The true boxes of one scene.

    Attributes:
        boxes: (m, 7), m may be 0.
        class_ids: (m,) int.
    """

    boxes: ArrayLike
    class_ids: ArrayLike


@dataclass(frozen=True, eq=False)
class Detections:
    """The predicted boxes of one scene, after suppression.

    Attributes:
        boxes: (n, 7), n may be 0.
        class_ids: (n,) int.
        scores: (n,) finite, higher for what is surer.
    """

    boxes: ArrayLike
    class_ids: ArrayLike
    scores: ArrayLike


@dataclass(frozen=True)
class DetectionScores:
    """How well the boxes of a split were found at one overlap; every score in [0, 1].

    Attributes:
        ap: average precision by class id, ascending: of every class of the ground truth, 0.0 where it was never
            predicted. A class that was predicted only has no entry, and no share in the means.
        recall: share of the true boxes of a class that were found by any of its predictions, in the same form.
        map: mean of `ap`; nan without a true box.
        mar: mean of `recall`; nan without a true box.
    """

    ap: Mapping[int, float]
    recall: Mapping[int, float]
    map: float
    mar: float


def evaluate(
    predictions: Sequence[Detections], targets: Sequence[Boxes], iou_thresholds: Sequence[float] = (0.25, 0.5)
) -> dict[float, DetectionScores]:
    """Score predicted boxes by the rules of VoteNet's code, at every threshold.

    The predictions of a class come surest first over all scenes; equal scores keep their order, scenes first. Each
    takes the true box of its class and scene with the greatest IoU (the first of equal ones). It is right if that IoU
    is strictly greater than the threshold and no prediction before took the box, and a false positive otherwise: there
    is no second choice. Average precision is the whole area under the curve of precision over recall, precision being
    made monotone from the right.

    Args:
        predictions: one entry per scene.
        targets: the ground truth of the same scenes, in the same order.
        iou_thresholds: each in [0, 1).

    Raises:
        ValueError: not as many entries, or a threshold out of range; or, naming the scene, shapes that differ, values
            that are not finite, negative sizes, class ids that are no integers.
    """
    if len(predictions) != len(targets):
        raise ValueError(
            f"predictions of {len(predictions)} scene(s), targets of {len(targets)}; give one entry of each per scene"
        )
    one_or_more = np.ndim(iou_thresholds) == 1 and len(iou_thresholds) > 0
    if not one_or_more or not all(0 <= threshold < 1 for threshold in iou_thresholds):
        raise ValueError(f"iou_thresholds is {iou_thresholds}; wanted one or more in [0, 1), (0.25, 0.5) for instance")
    scenes: list[tuple[Ids, Scores, Scores, Ids, Ids]] = []
    num_targets = 0
    for index, (predicted, target) in enumerate(zip(predictions, targets, strict=True)):
        try:
            scenes.append(_compare(predicted, target, num_targets))
        except ValueError as error:
            raise ValueError(f"scene {index} of {len(targets)}: {error}") from error
        num_targets += len(scenes[-1][-1])
    if not num_targets:
        return {threshold: DetectionScores({}, {}, float("nan"), float("nan")) for threshold in iou_thresholds}
    class_ids, scores, best_iou, best_target, target_ids = (
        np.concatenate(parts) for parts in zip(*scenes, strict=True)
    )
    classes, supports = np.unique(target_ids, return_counts=True)
    by_class = {}
    for class_id, support in zip(classes.tolist(), supports.tolist(), strict=True):
        rows = np.flatnonzero(class_ids == class_id)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        by_class[class_id] = (best_iou[rows], best_target[rows], support)
    return {threshold: _scores(by_class, threshold) for threshold in iou_thresholds}


def box_iou(a: ArrayLike, b: ArrayLike) -> Scores:
    """Intersection over union of the volumes of oriented boxes.

    Exact up to rounding, also where boxes are identical, touch or lie in each other. 0 where both volumes are 0.

    Args:
        a: (n, 7).
        b: (m, 7).

    Returns:
        (n, m) float64, in [0, 1].

    Raises:
        ValueError: another shape, a value that is not finite, a negative size.
    """
    first, second = _check_boxes(a, "a"), _check_boxes(b, "b")
    return _iou(first, second, np.ones((len(first), len(second)), bool))


def suppress(boxes: ArrayLike, class_ids: ArrayLike, scores: ArrayLike, iou_threshold: float) -> Ids:
    """Greedy suppression of boxes within their classes, by exact IoU.

    Surest first, equal scores in their order, a box is kept unless its IoU with one of its class that was kept is
    greater than the threshold. (VoteNet takes the IoU of the upright boxes around them, which is another one where
    boxes are turned.)

    Args:
        boxes: (n, 7).
        class_ids: (n,) int.
        scores: (n,) finite.
        iou_threshold: in [0, 1]; VoteNet's is 0.25.

    Returns:
        (k,) int64, the rows that are kept, surest first.

    Raises:
        ValueError: as `evaluate`, or a threshold out of range.
    """
    checked = _check_boxes(boxes, "boxes")
    ids, values = check_scored(class_ids, scores, len(checked), "boxes")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}; wanted a number in [0, 1] (VoteNet's is 0.25)")
    order = np.argsort(-values, kind="stable")
    checked, ids = checked[order], ids[order]
    kept = np.ones(len(order), bool)
    # Class by class: the pairs of all boxes would be gigabytes where a thousand places suggest every class.
    for class_id in np.unique(ids):
        rows = np.flatnonzero(ids == class_id)
        # Only a surer box removes another one, so half of the pairs are enough.
        surer = np.triu(np.ones((len(rows), len(rows)), bool), k=1)
        covers = _iou(checked[rows], checked[rows], surer) > iou_threshold
        of_class = np.ones(len(rows), bool)
        for row, covered in enumerate(covers):
            if of_class[row]:
                of_class &= ~covered
        kept[rows] = of_class
    return order[kept]


def _compare(predicted: Detections, target: Boxes, num_before: int) -> tuple[Ids, Scores, Scores, Ids, Ids]:
    """Class, score, greatest IoU and the number of its true box of every prediction of a scene; and the true classes.

    Args:
        num_before: true boxes of the scenes before, so that numbers are of the whole split.
    """
    boxes = _check_boxes(predicted.boxes, "boxes of predictions")
    class_ids, scores = check_scored(predicted.class_ids, predicted.scores, len(boxes), "predicted boxes")
    true_boxes = _check_boxes(target.boxes, "boxes of targets")
    true_ids = check_class_of_each(target.class_ids, len(true_boxes), "true boxes")
    iou = _iou(boxes, true_boxes, class_ids[:, None] == true_ids)
    # The column more is for scenes without a true box: nobody's IoU of 0 is greater than a threshold.
    best = np.concatenate([iou, np.zeros((len(boxes), 1))], axis=1).argmax(axis=1)
    return class_ids, scores, iou.max(axis=1, initial=0.0), num_before + best, true_ids


def _scores(by_class: Mapping[int, tuple[Scores, Ids, int]], threshold: float) -> DetectionScores:
    """From the greatest IoU and its true box of every prediction, surest first, and the number of true boxes."""
    ap, recall = {}, {}
    for class_id, (best_iou, best_target, support) in by_class.items():
        hits = np.flatnonzero(best_iou > threshold)
        _, first = np.unique(best_target[hits], return_index=True)
        right = np.zeros(len(best_iou), bool)
        right[hits[first]] = True
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        ap[class_id] = float(envelope[right].sum() / support)  # recall rises by 1 / support at each that is right
        recall[class_id] = len(first) / support
    means = (mean(np.array(list(values.values()))) for values in (ap, recall))
    return DetectionScores(ap, recall, *means)


def _iou(a: Scores, b: Scores, wanted: Flags) -> Scores:
    """(n, m) IoU of the wanted pairs, 0 for the others. Pairs whose bounding cylinders are apart cost nothing."""
    iou = np.zeros(wanted.shape)
    reach_a, reach_b = (np.hypot(boxes[:, 3], boxes[:, 4]) / 2 for boxes in (a, b))
    apart_x, apart_y, apart_z = (np.abs(a[:, None, axis] - b[:, axis]) for axis in range(3))
    near = wanted & (apart_z <= (a[:, None, 5] + b[:, 5]) / 2)
    near &= apart_x**2 + apart_y**2 <= (reach_a[:, None] + reach_b) ** 2
    rows, columns = np.nonzero(near)
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        chosen = slice(start, start + PAIRS_AT_ONCE)
        iou[rows[chosen], columns[chosen]] = _iou_of_pairs(a[rows[chosen]].T, b[columns[chosen]].T)
    return iou


def _iou_of_pairs(a: Scores, b: Scores) -> Scores:
    """(P,) from the columns (7, P) of both boxes of each pair."""
    shared = np.minimum(_shared_area(a, b), np.minimum(a[3] * a[4], b[3] * b[4]))
    apart, half_a, half_b = a[2] - b[2], a[5] / 2, b[5] / 2
    height = np.minimum(apart + half_a, half_b) - np.maximum(apart - half_a, -half_b)
    shared = shared * np.clip(height, 0, np.minimum(a[5], b[5]))
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _shared_area(a: Scores, b: Scores) -> Scores:
    """(P,) square metres that the outlines of two boxes share, seen from above.

    Clipping one by the other makes polygons of three to eight corners, and degenerate ones where they touch. Their area
    needs no corners: in b's axes it is the integral over x, within b's width, of the height between the lower and the
    upper side of a, both clipped to b's. The share of each side is a closed form and continuous in every number, so
    that rounding moves the area by rounding only.
    """
    cos, sin = np.cos(b[6]), np.sin(b[6])
    east, north = a[0] - b[0], a[1] - b[1]
    centre_x, centre_y = cos * east + sin * north, cos * north - sin * east
    cos, sin = np.cos(a[6] - b[6]), np.sin(a[6] - b[6])
    along_x, along_y = a[3] / 2 * cos, a[3] / 2 * sin
    across_x, across_y = -a[4] / 2 * sin, a[4] / 2 * cos
    # Counter-clockwise, so that upper sides run back: their share has the other sign.
    corners = [
        (centre_x + u * along_x + v * across_x, centre_y + u * along_y + v * across_y)
        for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))
    ]
    below = sum(
        _integral(*start, *end, b[3] / 2, b[4] / 2)
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True)
    )
    return np.maximum(-below, 0)


def _integral(x0: Scores, y0: Scores, x1: Scores, y1: Scores, half_width: Scores, half_height: Scores) -> Scores:
    """Integral of y, clipped to the half height, over x, clipped to the half width, along segments from 0 to 1."""
    run, rise = x1 - x0, y1 - y0
    start, end = np.clip(x0, -half_width, half_width), np.clip(x1, -half_width, half_width)
    # A run of nothing has no share; dividing by less than this might overflow.
    run = np.where(np.abs(run) > SMALLEST, run, 1)
    low, high = (y0 + np.clip((x - x0) / run, 0, 1) * rise for x in (start, end))
    low, high = np.minimum(low, high), np.maximum(low, high)
    # Shares of the way on which y is above and below the limits; between them it is the mean of its clipped ends.
    spread = high - low
    spread = np.where(spread > SMALLEST, spread, 1)
    above = np.clip((high - half_height) / spread, 0, 1)
    below = np.clip((-half_height - low) / spread, 0, 1)
    between = (np.clip(low, -half_height, half_height) + np.clip(high, -half_height, half_height)) / 2
    return (end - start) * ((above - below) * half_height + (1 - above - below) * between)


def _check_boxes(boxes: ArrayLike, name: str) -> Scores:
    """(n, 7) float64."""
    array = np.asarray(boxes)
    if array.size == 0 and len(array) == 0:
        return np.zeros((0, 7))  # no box, however it was written
    if array.ndim != 2 or array.shape[1] != 7:
        raise ValueError(f"{name} have shape {array.shape}; wanted (n, 7): cx, cy, cz, dx, dy, dz, yaw")
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} are {array.dtype}; wanted numbers, metres and radians")
    array = array.astype(np.float64)
    rows = np.flatnonzero(~np.isfinite(array).all(axis=1) | (np.abs(array[:, :6]) > LARGEST).any(axis=1))
    if len(rows):
        raise ValueError(
            f"{name}[{rows[0]}] is {array[rows[0]].tolist()}; wanted finite metres and radians, none "
            f"beyond {LARGEST:g} m"
        )
    rows = np.flatnonzero((array[:, 3:6] < 0).any(axis=1))
    if len(rows):
        raise ValueError(f"{name}[{rows[0]}] has sizes {array[rows[0], 3:6].tolist()}; wanted full sizes of 0 or more")
    return array
