"""Labels and ids as the protocols take them: checked, and as positions among the classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]


def integers(labels: ArrayLike, name: str) -> Ids:
    """Labels as int64, of the shape they have.

    Raises:
        ValueError: not integers, or larger than int64 holds.
    """
    array = np.asarray(labels)
    if array.size == 0 and not isinstance(labels, np.ndarray):
        return array.astype(np.int64)  # an empty list has no type of its own
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} are {array.dtype}; wanted an integer label each (argmax of the scores, an id for unlabelled)"
        )
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} hold {array.max()}, which does not fit int64; map the labels to smaller ids")
    return array.astype(np.int64, copy=False)


def check_ids(class_ids: Sequence[int], ignore_ids: Sequence[int] = ()) -> Ids:
    """The class ids as an array."""
    classes, ignored = integers(class_ids, "class_ids").ravel(), integers(ignore_ids, "ignore_ids").ravel()
    if len(classes) == 0:
        raise ValueError("class_ids is empty; give the ids of the classes to score")
    values, repeats = np.unique(classes, return_counts=True)
    if (repeats > 1).any():
        raise ValueError(f"class_ids holds {values[repeats > 1][0]} more than once; give each class once")
    both = np.intersect1d(classes, ignored)
    if len(both):
        raise ValueError(f"{both[0]} is in class_ids and in ignore_ids; a label is either scored or ignored")
    return classes


def check_scored(class_ids: ArrayLike, scores: ArrayLike, count: int, what: str) -> tuple[Ids, Scores]:
    """The classes and the scores of predicted things, of any type where there are none.

    Args:
        count: how many things there are.
        what: their name, plural.

    Returns:
        class_ids (count,) int64 and scores (count,) float64.

    Raises:
        ValueError: other shapes, class ids that are no integers, scores that are no finite numbers.
    """
    ids = check_class_of_each(class_ids, count, what)
    values = np.asarray(scores)
    if values.shape != (count,):
        raise ValueError(f"scores have shape {values.shape}; wanted ({count},), one for each of the {what}")
    if values.size and values.dtype.kind not in "iuf":
        raise ValueError(f"scores are {values.dtype}; wanted numbers, higher for what is surer")
    values = values.astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise ValueError(f"scores[{broken[0]}] is {values[broken[0]]}; wanted finite numbers, higher for what is surer")
    return ids, values


def check_class_of_each(class_ids: ArrayLike, count: int, what: str) -> Ids:
    """(count,) int64; raises ValueError for other shapes and for what is no integer."""
    ids = integers(class_ids if np.size(class_ids) else [], "class_ids")
    if ids.shape != (count,):
        raise ValueError(f"class_ids have shape {ids.shape}; wanted ({count},), one for each of the {what}")
    return ids


def index_of(classes: Ids, labels: Ids) -> Ids:
    """Position of every label among the classes, len(classes) where it is none of them."""
    by_id = np.argsort(classes)
    place = np.searchsorted(classes, labels, sorter=by_id)
    index = by_id[np.minimum(place, len(classes) - 1)]
    return np.where(classes[index] == labels, index, len(classes))


def mean(values: Scores) -> float:
    """nan of nothing, without numpy's warning."""
    return float(values.mean()) if len(values) else float("nan")
