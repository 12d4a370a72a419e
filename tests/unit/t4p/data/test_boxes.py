from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from t4p.data.boxes import bounds_of, bounds_of_instances, points_inside, rows_inside, upright_boxes
from t4p.metrics.detection import box_iou

SIZES = np.array([[0.5, 1.5, 0.8]])


def turned(angle: float, axis: int = 2) -> np.ndarray:
    """(4, 4) a turn about an axis by radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.eye(4)
    first, second = ((1, 2), (2, 0), (0, 1))[axis]
    matrix[[first, first, second, second], [first, second, first, second]] = [cos, -sin, sin, cos]
    return matrix


def moved(x: float, y: float, z: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


@pytest.mark.parametrize("angle", np.linspace(-np.pi, np.pi, 17))
def test_a_box_that_turns_about_the_vertical_comes_back_as_it_is(angle):
    (box,) = upright_boxes((moved(1, -2, 0.4) @ turned(angle))[None], SIZES, axis_aligned=False)
    assert np.allclose(box[:6], [1, -2, 0.4, *SIZES[0]])
    assert -np.pi / 2 <= box[6] < np.pi / 2
    assert np.sin(box[6] - angle) == pytest.approx(0, abs=1e-9)  # the same up to half a turn


@pytest.mark.parametrize("seed", range(20))
def test_a_mirrored_and_scaled_box_holds_the_same_corners(seed):
    rng = np.random.default_rng(seed)
    matrix = moved(*rng.normal(size=3)) @ turned(rng.uniform(-3, 3)) @ np.diag([-1.0, 1, 1, 1])
    matrix[:3, :3] *= rng.uniform(0.8, 1.2)
    corners = (np.array(list(product((-0.5, 0.5), repeat=3))) * SIZES) @ matrix[:3, :3].T + matrix[:3, 3]
    (box,) = upright_boxes(matrix[None], SIZES, axis_aligned=False)
    wider, smaller = box.copy(), box.copy()
    wider[3:6] += 1e-9
    smaller[3:6] -= 1e-6
    assert points_inside(corners, wider).all()
    assert not points_inside(corners, smaller).any()


def test_a_box_whose_x_stands_upright_is_turned_by_its_y():
    (box,) = upright_boxes((turned(0.3) @ turned(np.pi / 2, axis=1))[None], SIZES, axis_aligned=False)
    # Its own x, 0.5 long, points down, its z along x.
    assert np.allclose(box[3:6], [0.8, 1.5, 0.5])
    assert box[6] == pytest.approx(0.3)


def test_a_tilted_box_is_held_by_the_upright_one():
    tilted = moved(0, 0, 1) @ turned(0.4) @ turned(0.2, axis=0)
    (box,) = upright_boxes(tilted[None], SIZES, axis_aligned=False)
    corners = (np.array(list(product((-0.5, 0.5), repeat=3))) * SIZES) @ tilted[:3, :3].T + tilted[:3, 3]
    box[3:6] += 1e-9
    assert points_inside(corners, box).all()
    assert box[6] == pytest.approx(0.4)


def test_axis_aligned_ones_are_the_bounds_of_the_corners():
    (box,) = upright_boxes(turned(np.pi / 4)[None], SIZES, axis_aligned=True)
    assert box[6] == 0
    assert np.allclose(box[3:6], [2 / np.sqrt(2), 2 / np.sqrt(2), 0.8])


def test_there_may_be_no_box():
    assert upright_boxes(np.zeros((0, 4, 4)), np.zeros((0, 3)), axis_aligned=False).shape == (0, 7)


def test_bounds_hold_the_points_of_their_instance_and_touch_them():
    rng = np.random.default_rng(0)
    points, instance = rng.normal(size=(200, 3)), rng.integers(-1, 3, 200)
    boxes = bounds_of_instances(points, instance, 3)
    for index, box in enumerate(boxes):
        own = points[instance == index]
        assert np.allclose(box[:3] - box[3:6] / 2, own.min(0))
        assert np.allclose(box[:3] + box[3:6] / 2, own.max(0))
    assert (np.diag(box_iou(boxes, boxes)) > 1 - 1e-9).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_rows_in_boxes_are_those_of_the_points_inside_each_and_bounds_are_those_of_instances(seed):
    rng = np.random.default_rng(seed)
    points = np.round(rng.uniform(-3, 3, (500, 3)), 1)  # many on one plane, and on faces
    boxes = np.column_stack([rng.uniform(-3, 3, (40, 3)), rng.uniform(0, 3, (40, 3)), rng.uniform(-2, 2, 40)])
    boxes[:20, 6] = 0
    boxes[:20, :6] = np.round(boxes[:20, :6], 1)
    rows = list(rows_inside(points, boxes))
    for found, box in zip(rows, boxes, strict=True):
        np.testing.assert_array_equal(found, np.flatnonzero(points_inside(points, box)))
    assert list(rows_inside(points, boxes[:0])) == []
    instance = rng.integers(0, 6, 500)
    apart = [np.flatnonzero(instance == number) for number in range(6)]
    np.testing.assert_allclose(bounds_of(points, apart), bounds_of_instances(points, instance, 6))
