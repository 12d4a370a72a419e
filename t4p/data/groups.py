"""Groups of voxels without a mesh: an over-segmentation of points by normals and colour, the same in every run.

The method of Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation" (IJCV 2004), with the weights of
ScanNet's over-segmentation (Dai et al., CVPR 2017), where neighbouring voxels take the place of a mesh's edges. Voxels
are sorted and their means exact, so the order of the points does not matter.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t4p.data.lifting import local_origin
from t4p.data.transforms import ORIGIN_STEP, voxelize

# Chosen on five procedural rooms of one series: benchmarks/bench_groups.py has the figures of another.
VOXEL_SIZE = 0.04  # metres; the normal of a voxel is that of the points within one and a half
SCALE = 0.05  # how much a group of one voxel may vary; one of n voxels by so much / n more than it does
LEAST_VOXELS = 20  # smaller groups join the neighbour that differs least; those without a neighbour stay
COLOR_WEIGHT = 2.0  # of the squared difference of colours in [0, 1] beside 1 - cosine of the normals
_WEIGHT_STEP = 2.0**-20  # on flat surfaces weights differ by rounding, which is another on another processor
_BLOCK = 1 << 16  # pairs that are Python's numbers at a time: a million voxels have seven million

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


def group_points(points: Tensor, colors: Tensor | None, voxel_size: float = VOXEL_SIZE) -> Tensor:
    """Cut points into groups of connected voxels that bend and change colour little.

    Args:
        points: (N, 3) float32 or float64 metres, of one scene, on the CPU; N may be 0.
        colors: (N, 3) float in [0, 1]; None goes by normals alone.
        voxel_size: metres; LEAST_VOXELS and the reach of a normal are counted in voxels.

    Returns:
        (N,) int64, numbered 0, 1, ... in the order of their first points. Points of one voxel are of one group.

    Raises:
        ValueError: shapes that do not fit, a coordinate that is not finite, a colour out of range, or points that span
            more than 2^20 voxels along an axis.
    """
    _check_cloud(points, colors)
    if not len(points):
        return torch.zeros(0, dtype=torch.int64)
    middle = (points.amin(0).double() + points.amax(0).double()) / 2
    origin = torch.from_numpy(local_origin(middle.numpy(), voxel_size, ORIGIN_STEP))
    near = (points.double() - origin).float()
    voxels = voxelize(near, voxel_size)
    places = voxels.means(near).double().numpy() / voxel_size
    places -= places.mean(0)
    pairs = neighbour_pairs(voxels.voxel_coords.numpy())
    weights = _bending(places, voxels.num_points.numpy(), *pairs)
    if colors is not None:
        of_voxel = voxels.means(colors).double().numpy()
        weights += COLOR_WEIGHT * ((of_voxel[pairs[0]] - of_voxel[pairs[1]]) ** 2).sum(1)
    group_of_voxel = merge_pairs(len(places), *pairs, np.rint(weights / _WEIGHT_STEP) * _WEIGHT_STEP)
    return torch.from_numpy(_numbered(group_of_voxel[voxels.voxel_of_point.numpy()]))


def neighbour_pairs(voxel_coords: NDArray[np.int32]) -> tuple[IntArray, IntArray]:
    """Every two voxels that share a face, an edge or a corner.

    Args:
        voxel_coords: (V, 3), unique, ascending in (x, y, z), from 0 to 2^20.

    Returns:
        (E,) rows, each smaller than its partner, and (E,) rows of the partners.
    """
    # A free cell between the end of one row of cells and the begin of the next: no step leads from one to the other.
    strides = np.cumprod([1, *(voxel_coords[:, :0:-1].max(0).astype(np.int64) + 2)])[::-1]
    keys = voxel_coords @ strides
    firsts, seconds = [], []
    for step in sorted({int(np.dot(offset, strides)) for offset in product((-1, 0, 1), repeat=3)}):
        if step > 0:
            row = np.searchsorted(keys[:-1], keys + step)
            first = np.nonzero(keys[row] == keys + step)[0]
            firsts.append(first)
            seconds.append(row[first])
    return np.concatenate(firsts), np.concatenate(seconds)


def merge_pairs(num_voxels: int, first: IntArray, second: IntArray, weights: FloatArray) -> IntArray:
    """Merge along pairs, the lightest first: Felzenszwalb and Huttenlocher's rule, then what is small.

    All pairs are gone through, not those of a spanning tree alone: where a group refuses two others, which will merge
    by a heavier pair, the tree has no such pair.

    Args:
        first: (E,) rows, each paired with that of `second`.
        weights: (E,); of equal ones the earlier pair counts first.

    Returns:
        (V,) a number for each voxel, of its group.
    """
    order = np.argsort(weights, kind="stable")
    parent, size, limit = list(range(num_voxels)), [1] * num_voxels, [SCALE] * num_voxels
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        rows = (first[block].tolist(), second[block].tolist(), weights[block].tolist())
        for one, other, weight in zip(*rows, strict=True):
            one, other = _root(parent, one), _root(parent, other)
            if one != other and weight <= limit[one] and weight <= limit[other]:
                if size[one] < size[other]:
                    one, other = other, one
                parent[other] = one
                size[one] += size[other]
                limit[one] = weight + SCALE / size[one]
    group = np.array([_root(parent, row) for row in range(num_voxels)], dtype=np.int64)
    between = order[group[first[order]] != group[second[order]]]
    for one, other in zip(group[first[between]].tolist(), group[second[between]].tolist(), strict=True):
        one, other = _root(parent, one), _root(parent, other)
        if one != other and min(size[one], size[other]) < LEAST_VOXELS:
            parent[other] = one
            size[one] += size[other]
    return np.array([_root(parent, row) for row in range(num_voxels)], dtype=np.int64)


def _root(parent: list[int], row: int) -> int:
    """The voxel that stands for the group of `row`; shortens the way there."""
    while (above := parent[row]) != row:
        parent[row] = row = parent[above]
    return row


def _bending(places: FloatArray, num_points: IntArray, first: IntArray, second: IntArray) -> FloatArray:
    """(E,) how far the surface bends between two voxels: 1 - cosine of their normals, squared where it is convex.

    What is convex depends on the side from which a surface is seen, and nobody tells it here: the side of the middle of
    the scene, as in a room. Where that is wrong, hollows count for less and bumps for more.

    Args:
        places: (V, 3) of voxels, in voxels, from the middle of all.
        num_points: (V,).
        first: (E,) rows, each paired with that of `second`.
    """
    normals = _normals(places, num_points, first, second)
    normals *= np.where((places * normals).sum(1) > 0, -1.0, 1.0)[:, None]
    here, there = normals[first], normals[second]
    cosines = (here * there).sum(1)
    there *= np.where(cosines < 0, -1.0, 1.0)[:, None]
    bending = 1 - np.abs(cosines)
    is_convex = ((places[second] - places[first]) * (there - here)).sum(1) > 0
    return np.where(is_convex, bending**2, bending)


def _normals(places: FloatArray, num_points: IntArray, first: IntArray, second: IntArray) -> FloatArray:
    """(V, 3) unit: along which the points of a voxel and its neighbours vary least; arbitrary where there are few."""
    row, column = np.triu_indices(3)
    moments = np.concatenate([np.ones((len(places), 1)), places, places[:, row] * places[:, column]], axis=1)
    moments *= num_points[:, None]
    for moment in moments.T:  # a view of each column
        given = moment.copy()
        moment += np.bincount(second, given[first], len(given)) + np.bincount(first, given[second], len(given))
    means = moments[:, 1:] / moments[:, :1]
    covariance = np.empty((len(places), 3, 3))
    covariance[:, row, column] = covariance[:, column, row] = means[:, 3:] - means[:, row] * means[:, column]
    return np.linalg.eigh(covariance).eigenvectors[:, :, 0]


def _numbered(labels: IntArray) -> IntArray:
    """Labels (N,) as 0, 1, ... in the order in which they first occur."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _check_cloud(points: Tensor, colors: Tensor | None) -> None:
    """Refuse what is not a cloud of points."""
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"points have shape {tuple(points.shape)}; wanted (N, 3), metres")
    if len(lost := (~torch.isfinite(points)).any(1).nonzero()):
        raise ValueError(f"{len(lost)} points are not finite, the first of them row {int(lost[0])}; leave them out")
    if colors is None:
        return
    if colors.shape != points.shape or not colors.is_floating_point():
        raise ValueError(
            f"colors are {colors.dtype} of shape {tuple(colors.shape)}; wanted floats {tuple(points.shape)} in [0, 1]"
        )
    if len(colors) and not bool(((colors >= 0) & (colors <= 1)).all()):
        raise ValueError(
            f"colors reach from {float(colors.min()):g} to {float(colors.max()):g}; wanted [0, 1]: divide those of 8 "
            "bits by 255"
        )
