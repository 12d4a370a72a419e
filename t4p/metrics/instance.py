"""ScanNet's protocol for instances, on points: average precision of scored masks, by class and over overlaps.

Predictions made on voxels belong on points before they come here, as in `t4p.metrics.semantic`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t4p.metrics.labels import Ids, Scores, check_ids, check_scored, index_of, integers, mean

# In per cent: overlaps are ratios of counts, so "strictly greater" is decided on integers, without rounding.
OVERLAPS_PERCENT = (25, 50, 55, 60, 65, 70, 75, 80, 85, 90)


@dataclass(frozen=True, eq=False)
class InstanceScene:
    """The ground truth of one scene of N points, and P predictions.

    Attributes:
        semantic: (N,) int, the true class of every point; what is none of the evaluated classes is void.
        instance: (N,) int. The points of one class with one number above 0 are a true instance; a point with 0 or less
            is void, whatever its class.
        masks: (P, N) bool, the points of every prediction; masks may overlap.
        class_ids: (P,) int, the class of every prediction; those of other classes than the evaluated are left out.
        scores: (P,) finite, higher for what is surer.
    """

    semantic: ArrayLike
    instance: ArrayLike
    masks: ArrayLike
    class_ids: ArrayLike
    scores: ArrayLike


@dataclass(frozen=True)
class InstanceScores:
    """How well the instances of a split were found; every score in [0, 1].

    Attributes:
        ap: average precision by class id, mean over the overlaps 0.50, 0.55 .. 0.90; nan for a class without a true
            instance (of the wanted size), also where it was predicted.
        ap50: at an overlap of 0.50.
        ap25: at an overlap of 0.25, which has no share in `ap`.
        mean_ap: mean of `ap` over the classes that have a true instance; nan where none has.
        mean_ap50: the same of `ap50`.
        mean_ap25: the same of `ap25`.
    """

    ap: Mapping[int, float]
    ap50: Mapping[int, float]
    ap25: Mapping[int, float]
    mean_ap: float
    mean_ap50: float
    mean_ap25: float


def evaluate(scenes: Iterable[InstanceScene], class_ids: Sequence[int], min_region_size: int = 100) -> InstanceScores:
    """Score predicted instances by the rules of ScanNet's own script.

    Overlap is intersection over union, and has to be strictly greater. Predictions meet true instances of their class
    only, each one at a time in the order of their numbers: of the predictions that overlap it and have not found
    another one before, the first is right and the others are false positives. A prediction that overlaps no true
    instance is a false positive too, unless more than the overlap's share of its points is void or belongs to
    instances of its class that are too small: then it does not count. The curve has a point for every distinct score;
    the area is the sum of the precisions times half the recall between their neighbours.

    Where the script leaves a choice, or its versions differ:

    - predictions come surest first, so that the order in which they were given matters only for equal scores. (The
      script takes them as they come and gives the instance the highest score afterwards. The two differ only at 0.25,
      where a mask may overlap several instances);
    - void are the points whose class is not evaluated, as the script's text says (an early version marked the others),
      and those without an instance number. (ScanNet's files number instances from 1 and have 0, no class and no
      instance, for every other point: there both are the same);
    - a class all of whose predictions are left out has 0 (an early version ended with an error).

    Args:
        scenes: one after the other, a generator too; the masks of one are held at a time.
        class_ids: the classes that count (18 of ScanNet's).
        min_region_size: points; smaller predictions are left out, smaller true instances are not to be found.

    Raises:
        ValueError: naming the scene: shapes that differ, masks that are not bool, labels that are no integers, scores
            that are not finite; or class ids that repeat, or a size below 1.
    """
    _check_call(class_ids, min_region_size)
    compared = []
    for index, scene in enumerate(scenes):
        try:
            compared.append(compare(scene, class_ids, min_region_size))
        except ValueError as error:
            raise ValueError(f"scene {index}: {error}") from error
    return scores_of(compared, class_ids)


def compare(scene: InstanceScene, class_ids: Sequence[int], min_region_size: int = 100) -> ComparedScene:
    """Count what the predictions and the true instances of one scene share: small, whatever its masks are.

    Args:
        class_ids, min_region_size: as for `evaluate`.

    Raises:
        ValueError: as `evaluate`, without the number of the scene.
    """
    classes = _check_call(class_ids, min_region_size)
    return ComparedScene(tuple(_compare(scene, classes, min_region_size)))


def scores_of(scenes: Iterable[ComparedScene], class_ids: Sequence[int]) -> InstanceScores:
    """The scores of scenes that were compared, wherever that was done, with the same class ids and size."""
    classes = check_ids(class_ids)
    of_scenes = [scene.of_classes for scene in scenes]
    found = list(zip(*of_scenes, strict=True)) if of_scenes else [() for _ in classes]
    table = np.array([[_average_precision(of_class, percent) for percent in OVERLAPS_PERCENT] for of_class in found])
    table = table.reshape(-1, len(OVERLAPS_PERCENT))
    ap25, ap50, ap = table[:, 0], table[:, 1], table[:, 1:].mean(axis=1)
    present = ~np.isnan(ap)

    def by_class(values: Scores) -> dict[int, float]:
        return dict(zip(classes.tolist(), values.tolist(), strict=True))

    return InstanceScores(
        ap=by_class(ap),
        ap50=by_class(ap50),
        ap25=by_class(ap25),
        mean_ap=mean(ap[present]),
        mean_ap50=mean(ap50[present]),
        mean_ap25=mean(ap25[present]),
    )


@dataclass(frozen=True, eq=False)
class _ClassInScene:
    """True instances (T,) and predictions (P,) of one class in one scene, in points; neither holds a small one."""

    true_sizes: Ids  # in the order of the instance numbers
    sizes: Ids  # surest first
    scores: Scores
    shared: Ids  # (P, T)
    ignored: Ids  # (P,) void, or of true instances of this class that are too small


@dataclass(frozen=True, eq=False)
class ComparedScene:
    """What the predictions and the true instances of one scene share, by class in the order of the class ids."""

    of_classes: tuple[_ClassInScene, ...]


def _compare(scene: InstanceScene, classes: Ids, min_region_size: int) -> list[_ClassInScene]:
    """Count what the predictions and the true instances of a scene share; one record per class."""
    semantic, instance, masks, class_ids, scores = _check(scene)
    class_of_point = index_of(classes, semantic)
    labelled = (class_of_point < len(classes)) & (instance > 0)
    numbers, number = np.unique(instance[labelled], return_inverse=True)
    # One key for each pair of class and number; ascending as the classes, then as the numbers.
    keys, true_of_point = np.unique(class_of_point[labelled] * len(numbers) + number, return_inverse=True)
    region = np.full(len(semantic), len(keys))
    region[labelled] = true_of_point
    true_sizes = np.bincount(region, minlength=len(keys) + 1)[:-1]
    shared = np.zeros((len(masks), len(keys) + 1), np.int64)
    for row, mask in zip(shared, masks, strict=True):
        row[:] = np.bincount(region[mask], minlength=len(row))
    sizes = shared.sum(axis=1)
    surest_first = np.argsort(-scores, kind="stable")
    surest_first = surest_first[sizes[surest_first] >= min_region_size]
    class_of_true, class_of_prediction = keys // max(len(numbers), 1), index_of(classes, class_ids)
    of_classes = []
    for index in range(len(classes)):
        of_class = class_of_true == index
        true = np.flatnonzero(of_class & (true_sizes >= min_region_size))
        small = np.flatnonzero(of_class & (true_sizes < min_region_size))
        chosen = surest_first[class_of_prediction[surest_first] == index]
        ignored = shared[chosen, -1] + shared[np.ix_(chosen, small)].sum(axis=1)
        of_classes.append(
            _ClassInScene(true_sizes[true], sizes[chosen], scores[chosen], shared[np.ix_(chosen, true)], ignored)
        )
    return of_classes


def _average_precision(scenes: Sequence[_ClassInScene], percent: int) -> float:
    """Of one class at one overlap, over all scenes; nan without a true instance."""
    num_true = sum(len(scene.true_sizes) for scene in scenes)
    if num_true == 0:
        return float("nan")
    judged = [_judge(scene, percent) for scene in scenes]
    right, wrong = (np.sort(np.concatenate(scores)) for scores in zip(*judged, strict=True))
    thresholds = np.unique(np.concatenate([right, wrong]))
    num_right, num_wrong = (len(scores) - np.searchsorted(scores, thresholds) for scores in (right, wrong))
    # The curve ends where nothing is predicted, by definition with precision 1.
    precision = np.append(num_right / (num_right + num_wrong), 1.0)
    recall = np.append(num_right / num_true, 0.0)
    steps = np.convolve(np.concatenate([recall[:1], recall, [0.0]]), [-0.5, 0, 0.5], "valid")
    return float(precision @ steps)


def _judge(scene: _ClassInScene, percent: int) -> tuple[Scores, Scores]:
    """The scores of the predictions that are right, and of those that are wrong; others do not count."""
    unions = scene.sizes[:, None] + scene.true_sizes - scene.shared
    overlaps = 100 * scene.shared > percent * unions
    taken = np.zeros(len(scene.sizes), bool)
    right, wrong = [], []
    for overlapping in overlaps.T:
        candidates = np.flatnonzero(overlapping & ~taken)
        # Only who finds an instance is taken: a false positive here may still find another one, as in the script.
        taken[candidates[:1]] = True
        right.append(scene.scores[candidates[:1]])
        wrong.append(scene.scores[candidates[1:]])
    # A prediction that overlaps a too small instance falls under this rule as well: its share of the prediction is
    # greater than its overlap.
    counts = 100 * scene.ignored <= percent * scene.sizes
    wrong.append(scene.scores[~overlaps.any(axis=1) & counts])
    return np.concatenate([scene.scores[:0], *right]), np.concatenate(wrong)


def _check_call(class_ids: Sequence[int], min_region_size: int) -> Ids:
    if min_region_size < 1:
        raise ValueError(f"min_region_size is {min_region_size}; wanted at least 1 point (ScanNet's is 100)")
    return check_ids(class_ids)


def _check(scene: InstanceScene) -> tuple[Ids, Ids, NDArray[np.bool_], Ids, Scores]:
    semantic, instance = integers(scene.semantic, "semantic"), integers(scene.instance, "instance")
    if semantic.ndim != 1 or instance.shape != semantic.shape:
        raise ValueError(
            f"semantic has shape {semantic.shape}, instance {instance.shape}; wanted (N,) each, one number per point"
        )
    masks = np.asarray(scene.masks)
    if masks.size == 0 and len(masks) == 0:
        masks = np.zeros((0, len(semantic)), bool)  # no prediction, however it was written
    if masks.ndim != 2 or masks.shape[1] != len(semantic):
        raise ValueError(f"masks have shape {masks.shape}; wanted (P, {len(semantic)}), a row of points per prediction")
    if masks.dtype != bool:
        raise ValueError(f"masks are {masks.dtype}; wanted bool, True for the points of a prediction (masks > 0.5)")
    return semantic, instance, masks, *check_scored(scene.class_ids, scene.scores, len(masks), "masks")
