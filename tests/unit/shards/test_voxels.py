"""The number of voxels is that of the plain computation."""

import numpy as np
import pytest

from shards.voxels import CELL_SIZE, MOST, count_voxels

K = np.array([[60.0, 0.5, 32], [0, 55, 24], [0, 0, 1]])


def plain(depth: np.ndarray, depth_scale: float) -> int:
    rows, columns = np.mgrid[: depth.shape[0] : 2, : depth.shape[1] : 2]
    z = depth[::2, ::2] / depth_scale
    pixels = np.stack([columns, rows, np.ones(rows.shape)], axis=-1) @ np.linalg.inv(K).T
    return len(np.unique(np.floor((pixels * z[..., None])[z > 0] / CELL_SIZE).astype(int), axis=0))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("depth_scale", [1000.0, 5000.0])
def test_it_is_that_of_the_plain_computation(seed: int, depth_scale: float) -> None:
    rng = np.random.default_rng(seed)
    depth = (rng.integers(1, 9000, (48, 64)) * (rng.random((48, 64)) < rng.random())).astype(np.uint16)
    flat = np.full((48, 64), 707 + 311 * seed, np.uint16)
    for image in (depth, flat):
        wanted = plain(image, depth_scale)
        assert abs(count_voxels(image, depth_scale, K) - wanted) <= max(2, 0.005 * wanted)  # a cell's edge in float32


def test_the_ends_of_the_scale() -> None:
    assert count_voxels(np.zeros((48, 64), np.uint16), 1000.0, K) == 1
    assert count_voxels(np.full((48, 64), 65535, np.uint16), 1.0, K) <= 48 * 64 / 4
    far = np.random.default_rng(0).integers(100, 25_000, (800, 1200)).astype(np.uint16)
    wide = np.array([[1000.0, 0, 600], [0, 1000, 400], [0, 0, 1]])
    assert count_voxels(far, 1000.0, wide) == MOST
