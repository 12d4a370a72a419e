"""The unit and the up axis of a scan that does not say them: guessed from where its points lie."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["m", "cm", "mm"]
UpAxis = Literal["x", "y", "z", "-x", "-y", "-z"]
METRES: dict[Unit, float] = {"m": 1.0, "cm": 0.01, "mm": 0.001}
# Rows of the rotation that takes the axis to z; none of them mirrors.
_TURNS: dict[UpAxis, tuple[tuple[int, int, int], ...]] = {
    "x": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "y": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    "z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "-x": ((0, 1, 0), (0, 0, -1), (-1, 0, 0)),
    "-y": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "-z": ((1, 0, 0), (0, -1, 0), (0, 0, -1)),
}
UP_AXES = tuple(_TURNS)
# In the unit of the file. A room in metres has no side of 60, a room in millimetres none below 1000; what is between
# may be a building in metres, or a room in centimetres, and what is larger a town in metres, or a hall in millimetres.
_LOOKS_LARGE, _MOST_OF_ROOMS = 60.0, 20_000.0
_SURELY_MM = 1000.0
_OUTLIERS = 0.1  # per cent of the points at either end of an axis that do not count
_MOST_LOOKED_AT = 200_000
_BAND = 0.1  # metres, thickness of a floor with the noise of its scan
_LOW = 0.9  # of its other sides, that a scan is high at most where its height is guessed
_STANDS_OUT = 1.5  # times as dense as what else lies flat: the walls of a whole room do so along every axis
_LEAST_FLOOR = 0.1  # share of the points that a floor has, at least


def extents_of(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """(3,) how far the points reach along each axis, without a few outliers; 0 without points."""
    if not len(points):
        return np.zeros(3)
    low, high = np.percentile(_some(points), (_OUTLIERS, 100 - _OUTLIERS), axis=0)
    return np.asarray(high - low, np.float64)


def lie_near(points: NDArray[np.floating], reach: float) -> NDArray[np.bool_]:
    """(N,) whether each point (N, 3) lies at most `reach` along every axis from their median; of none, nothing."""
    if not len(points):
        return np.zeros(0, bool)
    with np.errstate(over="ignore"):
        return np.asarray((np.abs(points - np.median(_some(points), axis=0)) <= reach).all(axis=1))


def guess_unit(points: NDArray[np.floating]) -> tuple[Unit, str]:
    """The unit of coordinates, metres unless they can hardly be, and a remark where that is not certain ("" if it is).

    Args:
        points: (N, 3) finite, in the unit of their file.
    """
    extents = extents_of(points)
    size = " x ".join(f"{extent:.0f}" for extent in extents)
    if extents.max() < _LOOKS_LARGE:
        return "m", ""
    if extents.min() >= _SURELY_MM and extents.max() <= _MOST_OF_ROOMS:
        return "mm", f"it reaches over {size}, taken as millimetres; --unit m says that these are metres"
    return "m", (
        f"it reaches over {size}, which may be millimetres or centimetres; taken as metres, since that is not certain: "
        "say --unit mm or --unit cm if it is so, or --unit m"
    )


def guess_up(points: NDArray[np.floating]) -> UpAxis:
    """z, unless a floor stands out along y, the scan is lowest along it, and nothing lies flat along z.

    A floor is a thin dense band near the lower end of the up axis. So is a wall, along another axis, and to turn what
    stood upright is worse than to leave what did not. Files of meshes often have y up, and files in the axes of a
    camera y down; nothing else is guessed.

    Args:
        points: (N, 3) finite, metres.
    """
    extents = extents_of(points)
    if len(points) < 1000 or extents[1] > _LOW * min(extents[0], extents[2]):
        return "z"
    some = _some(points)
    flat_along_z = max(_dense_band(some[:, 2], below=1.0), _dense_band(-some[:, 2], below=1.0))
    found: UpAxis = "z"
    best = max(_LEAST_FLOOR, _STANDS_OUT * flat_along_z)
    candidates: tuple[tuple[UpAxis, NDArray[np.floating]], ...] = (("y", some[:, 1]), ("-y", -some[:, 1]))
    for axis, heights in candidates:
        floor, ceiling = _dense_band(heights, below=0.25), _dense_band(-heights, below=0.25)
        if floor > max(best, _STANDS_OUT * ceiling):
            found, best = axis, floor
    return found


def turn_up(points: NDArray[np.float64], up: UpAxis) -> NDArray[np.float64]:
    """(N, 3) points so turned that `up` becomes z; nothing is mirrored."""
    return points if up == "z" else points @ np.array(_TURNS[up], np.float64).T


def _dense_band(heights: NDArray[np.floating], below: float) -> float:
    """The densest band of _BAND in the lower share `below` of the extent, as the share of all points that it has."""
    low, high = np.percentile(heights, (_OUTLIERS, 100 - _OUTLIERS))
    extent = float(high - low)
    if extent < 5 * _BAND:  # all of it is one band
        return 0.0
    num_bins = min(max(int(extent / _BAND), 1), 1000)
    counts, _ = np.histogram(heights, num_bins, (low, high))
    return float(counts[: max(1, round(below * num_bins))].max() / len(heights))


def _some(points: NDArray[np.floating]) -> NDArray[np.floating]:
    return points[:: -(-len(points) // _MOST_LOOKED_AT)]
