"""ScanNet's protocol for semantic labels, on points: one confusion matrix over the whole split.

Counts of scenes and ranks are arrays and add up; scores are read off their sum. Predictions made on voxels belong on
points before they come here: counted per voxel they score higher than they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from t4p.metrics.labels import check_ids, index_of, integers, mean

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class SemanticScores:
    """How well the labels of a split were predicted; every score in [0, 1], nan where nothing could be scored.

    A class without a point in the ground truth has no IoU and no recall, and is left out of both means, also where it
    was predicted: those points are false negatives of what they really are, and no absent class counts as 0. (ScanNet's
    own script gives such a class 0, and nan only where it is neither there nor predicted; with all classes present, as
    in ScanNet's validation split, the two agree.)

    Attributes:
        iou: intersection over union by class id, in the order of the class ids.
        recall: share of a class's points that were found, by class id.
        miou: mean IoU of the classes that are present.
        macc: mean recall of the classes that are present.
        accuracy: share of all labelled points that were predicted right.
        support: labelled points that were scored, by class id.
    """

    iou: Mapping[int, float]
    recall: Mapping[int, float]
    miou: float
    macc: float
    accuracy: float
    support: Mapping[int, int]

    @property
    def num_points(self) -> int:
        """All labelled points that were scored."""
        return sum(self.support.values())

    def to_json(self, labels: Sequence[str]) -> dict[str, Any]:
        """For programs, by name; None where nothing could be scored.

        Args:
            labels: the name of every class, in the order of the class ids.
        """
        return {
            "miou": _finite(self.miou),
            "macc": _finite(self.macc),
            "accuracy": _finite(self.accuracy),
            "num_points": self.num_points,
            "iou": {label: _finite(value) for label, value in zip(labels, self.iou.values(), strict=True)},
            "recall": {label: _finite(value) for label, value in zip(labels, self.recall.values(), strict=True)},
        }

    def miou_of(self, class_ids: Iterable[int]) -> float:
        """Mean IoU of those of some classes that are present; nan where none is."""
        return mean(np.array([self.iou[class_id] for class_id in class_ids if self.support[class_id]]))


def evaluate(
    predictions: ArrayLike | Iterable[ArrayLike],
    targets: ArrayLike | Iterable[ArrayLike],
    class_ids: Sequence[int],
    ignore_ids: Sequence[int] = (),
) -> SemanticScores:
    """Score predicted labels.

    Args:
        predictions: integer label of every point: one array, or one array per scene.
        targets: the ground truth, in the same form.
        class_ids: the labels that count.
        ignore_ids: labels of ground truth that is not scored (unlabelled points).

    Raises:
        ValueError: as `confusion`, naming the scene; or there are more scenes of one than of the other.
    """
    predicted_scenes, target_scenes = _scenes(predictions), _scenes(targets)
    if len(predicted_scenes) != len(target_scenes):
        raise ValueError(
            f"predictions of {len(predicted_scenes)} scene(s), targets of {len(target_scenes)}; give one array of each "
            "per scene"
        )
    # So that wrong ids are an error also where there is no scene.
    counts = confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), class_ids, ignore_ids)
    for index, (predicted, target) in enumerate(zip(predicted_scenes, target_scenes, strict=True)):
        try:
            counts += confusion(predicted, target, class_ids, ignore_ids)
        except ValueError as error:
            raise ValueError(f"scene {index} of {len(target_scenes)}: {error}") from error
    return scores(counts, class_ids)


def confusion(
    predictions: ArrayLike, targets: ArrayLike, class_ids: Sequence[int], ignore_ids: Sequence[int] = ()
) -> Counts:
    """Count the points of one scene (or of a part of one).

    Args:
        predictions: integers of any shape; a label outside `class_ids` is a false negative of the target's class and a
            false positive of none.
        targets: integers of the same shape.

    Returns:
        (K, K + 1): points of class_ids[i] that were predicted as class_ids[j]; the last column holds those that were
        predicted as none of them. The counts of a split are the sum of those of its scenes.

    Raises:
        ValueError: not integers, shapes that differ, a target that is neither a class nor ignored, or ids that repeat.
    """
    classes = check_ids(class_ids, ignore_ids)
    predicted, target = integers(predictions, "predictions"), integers(targets, "targets")
    if predicted.shape != target.shape:
        raise ValueError(
            f"predictions have shape {predicted.shape}, targets {target.shape}; wanted one prediction per target"
        )
    labelled = ~np.isin(target, np.array(sorted(ignore_ids), np.int64))
    rows = index_of(classes, target[labelled])
    unknown = np.unique(target[labelled][rows == len(classes)])
    if len(unknown):
        named = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(
            f"targets hold {named}, neither a class nor ignored; add what counts to class_ids and what is unlabelled "
            "to ignore_ids, or map the labels first"
        )
    columns = index_of(classes, predicted[labelled])
    shape = (len(classes), len(classes) + 1)
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape).astype(np.int64)


def scores(counts: Counts, class_ids: Sequence[int]) -> SemanticScores:
    """Read the scores off the counts of a whole split.

    Args:
        counts: (K, K + 1), a sum of what `confusion` returned for these class ids.

    Raises:
        ValueError: counts of another number of classes.
    """
    classes = check_ids(class_ids)
    if counts.shape != (len(classes), len(classes) + 1):
        raise ValueError(
            f"counts have shape {counts.shape}; wanted {(len(classes), len(classes) + 1)} for {len(classes)} class ids"
        )
    hits = counts.diagonal()
    of_target, of_prediction = counts.sum(axis=1), counts.sum(axis=0)[:-1]
    present = of_target > 0
    iou, recall = (
        np.divide(hits, out_of, out=np.full(len(classes), np.nan), where=present)
        for out_of in (of_target + of_prediction - hits, of_target)
    )
    num_points = int(of_target.sum())
    return SemanticScores(
        iou=dict(zip(classes.tolist(), iou.tolist(), strict=True)),
        recall=dict(zip(classes.tolist(), recall.tolist(), strict=True)),
        miou=mean(iou[present]),
        macc=mean(recall[present]),
        accuracy=int(hits.sum()) / num_points if num_points else float("nan"),
        support=dict(zip(classes.tolist(), of_target.tolist(), strict=True)),
    )


def best_trivial_miou(support: Iterable[int]) -> float:
    """The mIoU of the best of three predictors that look at nothing.

    One class for every point (the best such class), a uniform draw, and a draw by the shares of the classes, which are
    those of the ground truth itself: a better prior than any that could be had. Of draws, the IoU of expected counts.

    Args:
        support: labelled points of each class; those without one are left out.

    Returns:
        nan without a labelled point.
    """
    shares = np.array([points for points in support if points], np.float64)
    if not len(shares):
        return float("nan")
    shares /= shares.sum()
    uniform = np.full(len(shares), 1 / len(shares))
    drawn = (mean(shares * chance / (shares + chance - shares * chance)) for chance in (uniform, shares))
    return max(float(shares.max()) / len(shares), *drawn)


def _scenes(labels: ArrayLike | Iterable[ArrayLike]) -> list[ArrayLike]:
    """One array is one scene, and so is a plain list of numbers."""
    if hasattr(labels, "__array__") or not isinstance(labels, Iterable):
        return [labels]  # type: ignore[list-item]
    each: list[ArrayLike] = list(labels)
    return [each] if each and all(np.isscalar(label) for label in each) else each  # type: ignore[list-item]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
