"""How the points of a training sample are bent and shaken: every point by itself, labels stay with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates, uniform_filter

# Edge of a cell of noise, and what the noise is multiplied by, metres: the two octaves that recipes for ScanNet have
# used since MinkowskiEngine's.
OCTAVES = ((0.2, 0.4), (0.8, 1.6))
_SMOOTHINGS = 2  # of three cells along every axis
_MOST_CELLS = 64  # along an axis; the noise repeats after them, so that memory is bounded
_CUT_OFF = 4.0  # standard deviations

Points = NDArray[np.float64]


def bend(points: Points, rng: np.random.Generator) -> Points:
    """Elastic distortion: each point moves by smooth noise at its place, on small cells first, then on large ones.

    Noise is white on the corners of a grid, smoothed, and linear between them; it closes at its ends, so that it is
    alike everywhere. Along each axis its deviation is about 4 cm of the small cells and 16 cm of the large ones.

    Args:
        points: (N, 3) metres; N may be 0.

    Returns:
        (N, 3), not in place.
    """
    for cell, size in OCTAVES:
        points = points + size * _smooth_noise(points / cell, rng)
    return points


def shake(points: Points, deviation: float, rng: np.random.Generator) -> Points:
    """(N, 3) points with Gaussian noise of `deviation` metres along each axis, cut off at four of it."""
    noise = rng.standard_normal(points.shape).clip(-_CUT_OFF, _CUT_OFF)
    return points + deviation * noise


def _smooth_noise(places: Points, rng: np.random.Generator) -> Points:
    """(N, 3) values of noise at (N, 3) places, in cells."""
    if not len(places):
        return places
    low = np.floor(places.min(axis=0))
    # The ends meet: as many cells more as keep one end's smoothing out of the other's.
    spans = np.ceil(places.max(axis=0) - low) + 1 + 2 * _SMOOTHINGS
    noise = rng.standard_normal((3, *np.minimum(spans, _MOST_CELLS).astype(int)), dtype=np.float32)
    for _ in range(_SMOOTHINGS):
        noise = uniform_filter(noise, size=3, mode="wrap", axes=(1, 2, 3))
    at = (places - low).T
    return np.stack([map_coordinates(each, at, np.float64, order=1, mode="grid-wrap") for each in noise], axis=1)
