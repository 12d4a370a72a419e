"""Ways to understand the poses of a scene: as they are told, and as every usual mistake would have made them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import permutations, product

import numpy as np

from shards.schema import Matrix

Axes = tuple[tuple[float, float, float], ...]  # signed permutation, rows
_DIRECTIONS = (("right", "left"), ("down", "up"), ("ahead", "back"))  # of x, y, z, and the other way
AS_GIVEN_AXES: Axes = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
OPENGL_AXES: Axes = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
_STEP = 1.25  # between ratios that are tried: what is between two of them fits well enough to be found
RATIOS = (*(_STEP**k for k in range(-14, 15) if k), 0.001, 0.01, 100.0, 1000.0)
FOCALS = (0.4, 0.5, 0.625, 0.75, 0.85, 1.18, 4 / 3, 1.6, 2.0, 2.5)


@dataclass(frozen=True)
class Reading:
    """A way to understand the poses and the camera of a scene; without arguments, as they are told.

    Attributes:
        axes: row k is the k-th axis of the told camera, in axes x right, y down, z ahead.
        is_inverse: what is told takes world to camera.
        is_transposed: rotations stand transposed, translations do not.
        w_first: the first number of the quaternions was taken for x and is w (1), or the other way round (-1).
        ratio: true translations are the told ones times this; or, the same to the eye, depth is divided by it.
        focal: true focal lengths are the told ones times this.
    """

    axes: Axes = AS_GIVEN_AXES
    is_inverse: bool = False
    is_transposed: bool = False
    w_first: int = 0
    ratio: float = 1.0
    focal: float = 1.0

    def world_from_camera(self, told: Matrix) -> Matrix:
        """(4, 4) what was meant by a told pose."""
        matrix = told.copy()
        if self.is_transposed:
            matrix[:3, :3] = matrix[:3, :3].T
        if self.w_first:
            matrix[:3, :3] = rotation_of(np.roll(quaternion_of(matrix[:3, :3]), -self.w_first))
        matrix[:3, 3] *= self.ratio
        if self.is_inverse:
            matrix = inverse(matrix)
        matrix[:3, :3] = matrix[:3, :3] @ np.array(self.axes)
        return matrix

    def axes_in_words(self) -> str:
        """Where the axes of the told camera point."""
        words = []
        for name, row in zip("xyz", self.axes, strict=True):
            place = next(i for i in range(3) if row[i])
            words.append(f"{name} {_DIRECTIONS[place][row[place] < 0]}")
        return ", ".join(words)


@cache
def mirrored() -> tuple[Reading, ...]:
    """Axes that point the other way, and poses that take world to camera: the usual other conventions."""
    every = [_axes((0, 1, 2), signs) for signs in product((1.0, -1.0), repeat=3)]
    # The most usual first: of two that fit alike, that one is believed.
    every.sort(key=lambda axes: (axes != AS_GIVEN_AXES, axes != OPENGL_AXES))
    readings = [Reading(axes=axes, is_inverse=is_inverse) for axes in every for is_inverse in (False, True)]
    return tuple(reading for reading in readings if reading != Reading())


@cache
def rare() -> tuple[Reading, ...]:
    """Axes in another order, rotations transposed, quaternions that begin with another number."""
    orders = [order for order in permutations(range(3)) if order != (0, 1, 2)]
    every = [_axes(order, signs) for order in orders for signs in product((1.0, -1.0), repeat=3)]
    readings = [Reading(axes=axes, is_inverse=is_inverse) for is_inverse in (False, True) for axes in every]
    return (Reading(is_transposed=True), Reading(w_first=1), Reading(w_first=-1), *readings)


def _axes(order: tuple[int, ...], signs: tuple[float, ...]) -> Axes:
    x, y, z = (
        (sign * (place == 0), sign * (place == 1), sign * (place == 2))
        for place, sign in zip(order, signs, strict=True)
    )
    return x, y, z


@cache
def units() -> tuple[Reading, ...]:
    """Translations, or depth, in another unit; also under the commonest other conventions."""
    ratios = [Reading(ratio=ratio) for ratio in RATIOS]
    ratios += [
        Reading(axes=axes, is_inverse=is_inverse, ratio=ratio)
        for axes, is_inverse in ((OPENGL_AXES, False), (AS_GIVEN_AXES, True), (OPENGL_AXES, True))
        for ratio in (0.001, 1000.0)
    ]
    return tuple(ratios)


@cache
def cameras() -> tuple[Reading, ...]:
    """K of another lens or resolution."""
    return tuple(Reading(focal=focal) for focal in FOCALS)


def inverse(matrix: Matrix) -> Matrix:
    """(4, 4) the way back."""
    return np.asarray(np.linalg.inv(matrix), np.float64)


def quaternion_of(rotation: Matrix) -> Matrix:
    """(4,) x y z w of a rotation; its sign is of no matter."""
    m = rotation
    # The column of the largest of the four: nothing is divided by what is nearly 0 (Shepperd).
    outer = np.array(
        [
            [1 + m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
            [m[0, 1] + m[1, 0], 1 - m[0, 0] + m[1, 1] - m[2, 2], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], 1 - m[0, 0] - m[1, 1] + m[2, 2], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + m[0, 0] + m[1, 1] + m[2, 2]],
        ]
    )
    column = outer[:, int(np.argmax(np.diag(outer)))]
    return np.asarray(column / np.linalg.norm(column), np.float64)


def rotation_of(quaternion: Matrix) -> Matrix:
    """(3, 3) of x y z w, unit length."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
