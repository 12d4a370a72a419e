"""Elastic distortion bends what lies together alike, everywhere as much; position noise is as large as it says."""

from __future__ import annotations

import numpy as np
import pytest

from t4p.data.warp import OCTAVES, bend, shake


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def cloud(seed: int, count: int = 4000) -> np.ndarray:
    return rng(seed).uniform((-3, 1, 0), (2, 5, 2.5), (count, 3))


@pytest.mark.parametrize("seed", range(10))
def test_every_point_moves_by_itself_and_the_rest_does_not_matter(seed: int) -> None:
    points = cloud(seed)
    moved = bend(points, rng(seed))
    assert np.array_equal(moved, bend(points, rng(seed)))
    assert not np.array_equal(moved, bend(points, rng(seed + 100)))
    order = rng(seed).permutation(len(points))
    assert np.array_equal(bend(points[order], rng(seed)), moved[order])
    assert np.array_equal(points, cloud(seed)), "not in place"


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_move_together_and_what_is_far_apart_does_not(seed: int) -> None:
    points = cloud(seed)
    near = points + 0.01 * rng(seed).uniform(-1, 1, points.shape)
    both = bend(np.concatenate([points, near]), rng(seed)) - np.concatenate([points, near])
    here, there = both[: len(points)], both[len(points) :]
    assert np.abs(here - there).max() < 0.05  # of up to 0.8
    far = rng(seed).permutation(len(points))
    apart = np.linalg.norm(points - points[far], axis=1) > 3
    assert abs(np.corrcoef(here[apart].ravel(), here[far][apart].ravel())[0, 1]) < 0.5
    assert np.abs(here - there).std() < 0.1 * here.std()


def test_the_noise_is_alike_in_the_middle_and_at_the_ends_and_as_large_as_its_docstring_says() -> None:
    points = np.concatenate([cloud(0, 500), [[-3, 1, 0], [2, 5, 2.5]]])
    moves = np.stack([bend(points, rng(seed)) - points for seed in range(300)])
    of_axis = moves.std(axis=0).mean(axis=1)
    assert of_axis[-2:] == pytest.approx(np.median(of_axis), rel=0.2), "at the corners"
    assert moves.std() == pytest.approx(np.hypot(0.04, 0.16), rel=0.1)
    assert abs(moves.mean()) < 0.005


def test_a_cloud_of_kilometres_needs_no_more_memory_and_an_empty_one_is_one() -> None:
    far = np.array([[0.0, 0, 0], [3000.0, 2000.0, 500.0]])
    assert np.abs(bend(far, rng(0)) - far).max() < 3 * OCTAVES[1][1]
    assert bend(np.zeros((0, 3)), rng(0)).shape == (0, 3)
    assert bend(np.zeros((1, 3)), rng(0)).shape == (1, 3)


def test_position_noise_has_its_deviation_and_an_end() -> None:
    moved = shake(np.zeros((200_000, 3)), 0.005, rng(0))
    assert moved.std() == pytest.approx(0.005, rel=0.01)
    assert np.abs(moved).max() == pytest.approx(0.02)
