"""The colours of labels, instances and features, the same in every picture and on every page."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

# Quiet, so that furniture stands out.
STRUCTURE = {"wall": (216, 213, 206), "floor": (230, 205, 160), "ceiling": (160, 176, 200)}
NO_LABEL = (60, 60, 60)  # of what has no label, or one that was not asked for
NO_INSTANCE = (222, 222, 224)
UNLABELLED = "unlabelled"
_STRETCHED = (2.0, 98.0)  # percentiles of a component of features that are black and full
_DISTINCT = (
    (66, 113, 174),
    (240, 138, 36),
    (216, 68, 74),
    (98, 186, 178),
    (150, 96, 60),
    (56, 142, 60),
    (242, 202, 60),
    (126, 78, 162),
    (86, 196, 236),
    (150, 200, 60),
    (240, 140, 170),
)
_MOST_DISTINCT = 64  # colours before they begin again: more cannot be told apart
_LEVELS = (20, 60, 100, 140, 180, 220)  # of red, green and blue of the colours to choose from
_LIGHTNESS = (25.0, 88.0)  # L*: neither lost on a dark page nor on a light one


def distinct_colors(count: int) -> NDArray[np.uint8]:
    """(count, 3) colours that differ from each other, and from those of structure, as much as so many can."""
    return _all_distinct()[np.arange(count) % _MOST_DISTINCT]


def label_colors(names: Sequence[str]) -> NDArray[np.uint8]:
    """(K, 3) a colour for every label, by its name where it is structure, else by its place among the others."""
    others = [name for name in dict.fromkeys(names) if name not in STRUCTURE and name != UNLABELLED]
    color_of = dict(zip(others, distinct_colors(len(others)), strict=True))
    fixed = {**STRUCTURE, UNLABELLED: NO_LABEL}
    return np.array([fixed.get(name, color_of.get(name)) for name in names], np.uint8).reshape(len(names), 3)


def color_labels(labels: NDArray[np.integer], names: Sequence[str]) -> NDArray[np.uint8]:
    """(..., 3) the colour of every label, NO_LABEL where it is none of 0 to K - 1.

    Args:
        labels: (...) indices of labels.
        names: K names of labels.
    """
    colors = np.concatenate([label_colors(names), np.array([NO_LABEL], np.uint8)])
    return colors[np.where((labels >= 0) & (labels < len(names)), labels, len(names))]


def color_instances(ids: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(..., 3) a colour for every instance; NO_INSTANCE for 0, which is none."""
    present, dense = np.unique(ids, return_inverse=True)
    colors = np.zeros((len(present), 3), np.uint8)
    colors[present != 0] = distinct_colors(int(np.count_nonzero(present)))
    colors[present == 0] = NO_INSTANCE
    return colors[dense.reshape(ids.shape)]


def color_features(features: NDArray[np.floating]) -> tuple[NDArray[np.uint8], float]:
    """Features as red, green and blue, so that what is alike to a network looks alike.

    These are their three principal components, the largest first, each stretched from its 2nd to its 98th percentile. A
    direction has two signs: the one whose largest entry is positive is taken, so that one network gives one picture.

    Args:
        features: (N, C), N at least 1.

    Returns:
        (N, 3) uint8, grey where a component is the same everywhere; and the share of the variance in them, in [0, 1].
    """
    offsets = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(offsets.T @ offsets)  # ascending
    variances, directions = variances[::-1], directions[:, ::-1][:, :3]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(directions.shape[1])] < 0, -1.0, 1.0)
    components = np.zeros((len(features), 3))
    components[:, : directions.shape[1]] = offsets @ directions
    low, high = np.percentile(components, _STRETCHED, axis=0)
    flat = high - low <= 1e-9 * max(1.0, float(np.abs(features).max()))
    shares = np.where(flat, 0.5, (components - low) / np.where(flat, 1.0, high - low))
    kept = float(variances[:3].sum() / variances.sum()) if variances.sum() > 0 else 0.0
    return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8), kept


def lab_of(colors: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N, 3) sRGB of 0 to 255 as CIE L*a*b*, in which distances are what the eye sees of a difference."""
    share = colors / 255.0
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    cubic = np.cbrt(np.maximum(xyz / np.array([0.9505, 1.0, 1.089]), 1e-9))
    x, y, z = cubic.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


@cache
def _all_distinct() -> NDArray[np.uint8]:
    """The chosen ones, then again and again the one that is farthest from all before."""
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = lab_of(grid)
    usable = (lab[:, 0] >= _LIGHTNESS[0]) & (lab[:, 0] <= _LIGHTNESS[1])
    grid, lab = grid[usable], lab[usable]
    chosen = list(_DISTINCT)
    known = np.array([*STRUCTURE.values(), NO_LABEL, (255, 255, 255), *_DISTINCT])
    nearest = np.linalg.norm(lab[:, None] - lab_of(known)[None], axis=2).min(axis=1)
    while len(chosen) < _MOST_DISTINCT:
        best = int(np.argmax(nearest))
        chosen.append(tuple(grid[best].tolist()))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[best], axis=1))
    return np.array(chosen, np.uint8)
