"""The proof of poses: depth of one frame, lifted and carried into another by their poses, has to meet the depth there.

Of two cameras only the relative motion matters, and every usual mistake changes it in its own way: so poses are read in
each of the usual ways (`readings`), and one of them has to fit. Sizes cannot be told by this alone: depth ten times too
large, and translations ten times too small, look alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from shards.plausible.facts import View
from shards.plausible.readings import Reading, inverse
from shards.schema import Matrix

NEAR = 0.05  # relative difference of two depths that are of one surface
_POINTS = 700  # of a frame, spread over it, that are carried into another
FEWEST_POINTS = 100  # that meet a reading, before anything is said
_OFF_CENTRE = 0.03  # of the width or height; K of another resolution is tried about the middle then


@dataclass(frozen=True)
class Fit:
    """How well depth meets depth, over some pairs, by one reading.

    Attributes:
        error: median relative difference where a point meets a reading; infinite where too few do.
        near: of all points that meet a reading, the share within NEAR.
        overlap: of all points, the share that meet a reading.
    """

    error: float
    near: float
    overlap: float

    @property
    def hits(self) -> float:
        """Of all points, the share that meet a reading within NEAR."""
        return self.near * self.overlap


@dataclass(frozen=True, eq=False)
class Differences:
    """Of one pair of frames, both ways, by one reading.

    Attributes:
        relative: (n,) differences of two depths over the one that is met.
        num_points: that were carried over.
    """

    relative: NDArray[np.float32]
    num_points: int


def fit_of(pairs: Sequence[Differences]) -> Fit:
    """All pairs of a scene together: each counts by what it shows."""
    found = np.concatenate([pair.relative for pair in pairs]) if pairs else np.empty(0, np.float32)
    num_points = sum(pair.num_points for pair in pairs)
    if len(found) < FEWEST_POINTS:
        return Fit(float("inf"), 0.0, len(found) / max(num_points, 1))
    return Fit(float(np.median(found)), float((found < NEAR).mean()), len(found) / num_points)


def differences(a: View, b: View, readings: Sequence[Reading]) -> list[Differences]:
    """Carry depth of two frames into each other; one result for each reading. Both have poses."""
    relative = [_relative(a, b, reading) for reading in readings]
    there = carried(a, b, relative, [reading.focal for reading in readings])
    back = carried(b, a, [inverse(matrix) for matrix in relative], [reading.focal for reading in readings])
    return [
        Differences(np.concatenate([x.relative, y.relative]), x.num_points + y.num_points)
        for x, y in zip(there, back, strict=True)
    ]


def without_motion(a: View, b: View) -> Differences:
    """As if the camera had stood still."""
    there, back = (carried(one, other, [np.eye(4)], [1.0])[0] for one, other in ((a, b), (b, a)))
    return Differences(np.concatenate([there.relative, back.relative]), there.num_points + back.num_points)


def _relative(a: View, b: View, reading: Reading) -> Matrix:
    assert a.world_from_camera is not None
    assert b.world_from_camera is not None
    world_from_a = reading.world_from_camera(a.world_from_camera)
    world_from_b = reading.world_from_camera(b.world_from_camera)
    relative: Matrix = np.linalg.inv(world_from_b) @ world_from_a
    return relative


def carried(a: View, b: View, b_from_a: Sequence[Matrix], focals: Sequence[float]) -> list[Differences]:
    """Carry depth of frame a into frame b.

    Args:
        b_from_a: (4, 4) transforms, each to be tried.
        focals: beside each, factor on the focal lengths of both.
    """
    found: list[Differences] = []
    for focal, group in groupby(zip(b_from_a, focals, strict=True), key=lambda item: item[1]):
        found += _carried(a, b, np.stack([matrix for matrix, _ in group]), focal)
    return found


def _carried(a: View, b: View, b_from_a: NDArray[np.float64], focal: float) -> list[Differences]:
    height, width = a.depth.shape
    stride = max(1, round((height * width / _POINTS) ** 0.5))
    rows, columns = np.mgrid[stride // 2 : height : stride, stride // 2 : width : stride]
    z = a.depth[rows, columns].astype(np.float64)
    rows, columns, z = rows[z > 0], columns[z > 0], z[z > 0]
    K, K_b = _camera(a, focal), _camera(b, focal)
    y = (rows - K[1, 2]) / K[1, 1]
    points = np.stack([(columns - K[0, 2] - K[0, 1] * y) / K[0, 0] * z, y * z, z])
    moved = b_from_a[:, :3, :3] @ points + b_from_a[:, :3, 3:]  # (readings, 3, points)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        row = moved[:, 1] / moved[:, 2] * K_b[1, 1] + K_b[1, 2]
        column = (moved[:, 0] * K_b[0, 0] + moved[:, 1] * K_b[0, 1]) / moved[:, 2] + K_b[0, 2]
        seen = (moved[:, 2] > 0) & (row > -0.5) & (row < b.depth.shape[0] - 0.5)
        seen &= (column > -0.5) & (column < b.depth.shape[1] - 0.5)
    found = []
    for i, here in enumerate(seen):
        met = b.depth[np.rint(row[i, here]).astype(np.intp), np.rint(column[i, here]).astype(np.intp)]
        there = met > 0
        relative = np.abs(moved[i, 2, here][there] - met[there]) / met[there]
        found.append(Differences(relative.astype(np.float32), len(z)))
    return found


def _camera(view: View, focal: float) -> Matrix:
    """K with other focal lengths; then a principal point that is off the middle is of that other camera too."""
    if focal == 1:
        return view.K_depth
    K = view.K_depth.copy()
    K[:2, :2] *= focal
    middle = np.array([(side - 1) / 2 for side in view.size])
    if (np.abs(K[:2, 2] - middle) > _OFF_CENTRE * np.array(view.size)).all():
        K[:2, 2] = middle
    return K


def finer(reading: Reading) -> tuple[Reading, ...]:
    """Around a ratio, or a focal length, that fits best of those tried."""
    steps = [1.03**k for k in range(-4, 5)]  # as far as half the way to the next that was tried
    if reading.focal != 1:
        return tuple(replace(reading, focal=reading.focal * step) for step in steps)
    if reading.ratio != 1:
        return tuple(replace(reading, ratio=reading.ratio * step) for step in steps)
    return (reading,)
