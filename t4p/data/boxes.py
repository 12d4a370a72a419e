"""Boxes as detection takes them: seven numbers each, upright, in the frame of the points that a network is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

_CORNERS = np.array(list(product((-0.5, 0.5), repeat=3)))  # (8, 3) of a box of size 1 about its middle


def upright_boxes(
    matrix_of_box: NDArray[np.float64], sizes: NDArray[np.float64], *, axis_aligned: bool
) -> NDArray[np.float64]:
    """The smallest boxes that stand upright around given ones.

    A box that only turns about the vertical, or is mirrored or scaled, comes back as it is.

    Args:
        matrix_of_box: (B, 4, 4) affine, from each box's own axes, which begin in its middle, to the points'; z up.
        sizes: (B, 3) full extents along its own axes, metres.
        axis_aligned: along the axes of the points, instead of along the box's own horizontal ones.

    Returns:
        (B, 7): middle x, y, z and full extents along its own axes, metres; then its turn about the vertical,
        counter-clockwise from x, in [-pi/2, pi/2) (0 where `axis_aligned`).
    """
    if not len(sizes):
        return np.zeros((0, 7))
    linear = matrix_of_box[:, :3, :3]
    # Of the box's own axes the one that lies flattest says how it is turned; the first of equals, its x.
    steepness = np.abs(linear[:, 2]) / np.linalg.norm(linear, axis=1)
    flattest = np.argmin(np.round(steepness, 6), axis=1)
    along = np.take_along_axis(linear, flattest[:, None, None], axis=2)[..., 0]
    yaw = np.arctan2(along[:, 1], along[:, 0]) - np.where(flattest == 1, np.pi / 2, 0.0)
    yaw = (yaw + np.pi / 2) % np.pi - np.pi / 2
    if axis_aligned:
        yaw = np.zeros_like(yaw)
    cos, sin, zero, one = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw), np.ones_like(yaw)
    axes = np.stack([np.stack(row, axis=1) for row in ((cos, sin, zero), (-sin, cos, zero), (zero, zero, one))], axis=1)
    corners = (_CORNERS * sizes[:, None]) @ linear.transpose(0, 2, 1) @ axes.transpose(0, 2, 1)
    low, high = corners.min(axis=1), corners.max(axis=1)
    middles = ((low + high) / 2)[:, None] @ axes
    return np.concatenate([middles[:, 0] + matrix_of_box[:, :3, 3], high - low, yaw[:, None]], axis=1)


def bounds_of_instances(
    points: NDArray[np.float64], instance_of_point: NDArray[np.int64], num_instances: int
) -> NDArray[np.float64]:
    """(M, 7) axis-aligned boxes around the points of each instance, as VoteNet makes ScanNet's.

    Args:
        points: (N, 3) metres, z up.
        instance_of_point: (N,) in 0 .. num_instances - 1, or below 0 for none. Every instance has a point.
    """
    low, high = np.full((num_instances, 3), np.inf), np.full((num_instances, 3), -np.inf)
    held = instance_of_point >= 0
    np.minimum.at(low, instance_of_point[held], points[held])
    np.maximum.at(high, instance_of_point[held], points[held])
    return np.concatenate([(low + high) / 2, high - low, np.zeros((num_instances, 1))], axis=1)


def bounds_of(points: NDArray[np.floating], rows: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(M, 7) axis-aligned boxes around the points (N, 3) of each list of rows; none is empty."""
    boxes = np.zeros((len(rows), 7))
    for box, own in zip(boxes, rows, strict=True):
        low, high = points[own].min(axis=0).astype(np.float64), points[own].max(axis=0).astype(np.float64)
        box[:3], box[3:6] = (low + high) / 2, high - low
    return boxes


def points_inside(points: NDArray[np.floating], box: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,) whether each point (N, 3) lies in an upright box (7,), on its faces too."""
    offset = points - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    across = np.stack(
        [cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]], axis=1
    )
    return (np.abs(across) <= box[3:6] / 2).all(axis=1)


def rows_inside(points: NDArray[np.floating], boxes: NDArray[np.float64]) -> Iterator[NDArray[np.int64]]:
    """Of each upright box (B, 7) the ascending rows of the points (N, 3) that lie in it, as `points_inside` says.

    Of each box only the points abreast of it along x are looked at: boxes may be thousands among millions of points.
    """
    order = np.argsort(points[:, 0], kind="stable")
    points = points[order]
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2
    starts = np.searchsorted(points[:, 0], boxes[:, 0] - reach, side="left")
    ends = np.searchsorted(points[:, 0], boxes[:, 0] + reach, side="right")
    for start, end, box in zip(starts, ends, boxes, strict=True):
        yield np.sort(order[start:end][points_inside(points[start:end], box)])
