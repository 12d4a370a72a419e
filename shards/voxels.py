"""How many voxels a frame will have, nearly: what balances ranks, counted once and stored with the dataset."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from shards.schema import Matrix

CELL_SIZE = 0.025  # metres
PIXEL_STRIDE = 2
MOST = (1 << 16) - 1
_BITS = (10, 11, 11)  # of z, y and x in a key of 32 bits
_ROOM = np.float32(25.5)  # metres; what is further away shares the outermost cells


def count_voxels(depth: NDArray[np.uint16], depth_scale: float, K: Matrix) -> int:
    """Occupied cells of CELL_SIZE, camera axes, over every PIXEL_STRIDE-th row and column of a depth image.

    Args:
        depth: (H, W), units of depth_scale; 0 means no reading.
        depth_scale: units per metre.
        K: (3, 3) intrinsics of the depth image, pixels.

    Returns:
        1 to MOST, which stands for all numbers above it; an image without a reading counts as 1 cell.
    """
    rays = _rays(depth.shape, *(float(K[i, j]) for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2))))
    cells = depth[::PIXEL_STRIDE, ::PIXEL_STRIDE].astype(np.float32).ravel()
    num_empty = len(cells) - int(np.count_nonzero(cells))
    np.minimum(cells, _ROOM * np.float32(depth_scale), out=cells)
    cells *= np.float32(1 / CELL_SIZE / depth_scale)
    keys = cells.astype(np.uint32)
    keys <<= np.uint32(_BITS[1] + _BITS[2])
    half = np.float32(1 << (_BITS[1] - 1))
    for ray, shift in zip(rays, (0, _BITS[2]), strict=True):
        place = ray * cells
        place += half
        np.clip(place, 0, 2 * half - 1, out=place)  # not negative: cut off is floor
        keys |= place.astype(np.uint32) << np.uint32(shift)
    keys.sort()
    occupied = 1 + int(np.count_nonzero(keys[1:] != keys[:-1]))
    # What has no reading is all in the cell of the camera, where nothing can be.
    return min(max(occupied - (num_empty > 0), 1), MOST)


@lru_cache(maxsize=8)
def _rays(shape: tuple[int, int], fx: float, skew: float, cx: float, fy: float, cy: float) -> NDArray[np.float32]:
    """(2, n) x/z and y/z of the pixels that are looked at; a dataset has few cameras."""
    rows, columns = np.mgrid[0 : shape[0] : PIXEL_STRIDE, 0 : shape[1] : PIXEL_STRIDE].astype(np.float64)
    y = (rows - cy) / fy
    x = (columns - cx - skew * y) / fx
    return np.stack([x.ravel(), y.ravel()]).astype(np.float32)
