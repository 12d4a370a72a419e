"""What a user hands to `t4p.load`'s models, checked: points, colours, groups and words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from t4p.tasks.query import spelling

Points: TypeAlias = ArrayLike | Tensor
_SHARES_OF_BYTES = (np.arange(256) / 255).astype(np.float32)


def checked_points(points: Points, voxel_size: float) -> NDArray[np.float32]:
    """(N, 3) float32.

    Raises:
        ValueError: other shapes or types; not finite; so far from the origin that voxels cannot be told apart.
    """
    array = _array(points)
    if array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"points are {array.dtype} of shape {array.shape}, wanted numbers (N, 3): x, y, z in metres")
    if num_broken := int((~np.isfinite(array)).any(axis=1).sum()):
        raise ValueError(f"{num_broken} of {len(array)} points are not finite (NaN or infinite); leave them out")
    farthest = float(np.abs(array).max(initial=0.0))
    if _too_coarse(farthest, voxel_size):
        rows = [row for row, reach in enumerate(np.abs(array).max(axis=1).tolist()) if _too_coarse(reach, voxel_size)]
        raise ValueError(
            f"{len(rows)} of {len(array)} points, the first of them row {rows[0]}, lie up to {farthest:g} m from the "
            f"origin, where float32 cannot tell voxels of {voxel_size:g} m apart; leave them out if they went astray, "
            "or subtract an offset near the middle of the scan"
        )
    return array.astype(np.float32)


def _too_coarse(reach: float, voxel_size: float) -> bool:
    """Whether points so far from the origin fall together with those of the next voxel: by half a voxel, in float32."""
    return reach > float(np.finfo(np.float32).max) or float(np.spacing(np.float32(reach))) > voxel_size / 2


def checked_colors(colors: Points, num_points: int) -> NDArray[np.float32]:
    """(N, 3) float32 in [0, 1].

    Raises:
        ValueError: other shapes or types, or values out of range.
    """
    array = _array(colors)
    if array.shape != (num_points, 3):
        raise ValueError(f"colors have shape {array.shape}, wanted ({num_points}, 3), a row for every point")
    if array.dtype == np.uint8:
        return _SHARES_OF_BYTES[array]
    if array.dtype.kind != "f":
        raise ValueError(f"colors are {array.dtype}, wanted uint8, or floats in [0, 1]")
    if not ((array >= 0) & (array <= 1)).all():  # NaN is neither
        raise ValueError(
            f"colors are floats from {array.min():g} to {array.max():g}, wanted [0, 1]; divide by 255, or give uint8"
        )
    return array.astype(np.float32)


def checked_groups(groups: Points, num_points: int) -> NDArray[np.int64]:
    """(N,) int64, numbered from 0 without gaps.

    Raises:
        ValueError: other shapes or types.
    """
    array = _array(groups)
    if array.shape != (num_points,) or array.dtype.kind not in "iu":
        raise ValueError(
            f"groups are {array.dtype} of shape {array.shape}, wanted integers ({num_points},), one for every point"
        )
    return np.unique(array, return_inverse=True)[1].astype(np.int64)


def _array(values: Points) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def checked_words(words: Sequence[str], what: str, known: Iterable[str] = ()) -> tuple[str, ...]:
    """The words, each once, with single spaces; those that are known in another spelling as they are known.

    Args:
        what: they are for, for messages.
        known: words in a spelling of their own, of which the first counts where two are one word.

    Raises:
        ValueError: no list of words, none, an empty one, or one twice.
    """
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{what} is {words!r}, wanted a list of words such as ['chair', 'table']")
    if not words:
        raise ValueError(f"{what} is empty, wanted at least one word")
    if any(not word.strip() for word in words):
        raise ValueError(f"{what} is {list(words)}, of which one is empty; take it out")
    exact = set(known)
    spelt: dict[str, str] = {}
    for word in (*known, *(" ".join(word.split()) for word in words)):
        spelt.setdefault(spelling(word), word)
    found = tuple(word if word in exact else spelt[spelling(word)] for word in words)
    if doubles := sorted({word for word in found if found.count(word) > 1}):
        raise ValueError(f"{what} names twice: {', '.join(doubles)}")
    return found
