"""What a network says of a scan in one pass, without the repetitions: points of one voxel are told the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Embedded:
    """Where points lie in the space of CLIP's text.

    Attributes:
        features: (Vb, d) float32, unit-norm, of the bottleneck voxels.
        row_of_point: (N,) int64, the row of `features` that each point has.
    """

    features: NDArray[np.float32]
    row_of_point: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Described(Embedded):
    """That, and how well labels fit.

    Attributes:
        scores: (V, K) float32 of the voxels, as `Model.classify` has them of points.
        voxel_of_point: (N,) int64, the row of `scores` that each point has.
    """

    scores: NDArray[np.float32]
    voxel_of_point: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FoundObjects(Embedded):
    """That, and the objects among the points, the surest first.

    Attributes:
        label_ids: (P,) int64 rows of the labels.
        scores: (P,) float64 in [0, 1].
        boxes: (P, 7) middle, full extents, metres; turn about the vertical. Of masks, the bounds of their points.
        points_of: of each object the (n,) int64 ascending rows of the points that belong to it or, of boxes, lie in it.
    """

    label_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    points_of: tuple[NDArray[np.int64], ...]


class PointsOfVoxels:
    """Looks up which points lie in given voxels."""

    def __init__(self, voxel_of_point: NDArray[np.int64], num_voxels: int) -> None:
        """voxel_of_point: (N,) in 0 .. num_voxels - 1."""
        self._order = np.argsort(voxel_of_point, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(voxel_of_point, minlength=num_voxels))])

    def rows(self, voxels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ascending rows of the points in (n,) voxels, each named once."""
        starts, counts = self._starts[voxels], self._starts[voxels + 1] - self._starts[voxels]
        before = np.cumsum(counts) - counts
        return np.sort(self._order[np.repeat(starts - before, counts) + np.arange(counts.sum())])
