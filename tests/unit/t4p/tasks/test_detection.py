from __future__ import annotations

import numpy as np

from t4p.data.boxes import points_inside
from t4p.metrics.detection import Detections
from t4p.tasks.detection import FEWEST_POINTS, drop_empty


def test_boxes_with_few_points_are_left_out_wherever_they_lie_and_however_they_are_turned():
    rng = np.random.default_rng(0)
    points = rng.uniform(-2, 2, (400, 3))
    boxes = np.concatenate(
        [rng.uniform(-2.5, 2.5, (200, 3)), rng.uniform(0, 2, (200, 3)), rng.uniform(-1.5, 1.5, (200, 1))], axis=1
    )
    kept = np.array([points_inside(points, box).sum() >= FEWEST_POINTS for box in boxes])
    assert 20 < kept.sum() < 180, "both kinds are there"
    found = drop_empty(Detections(boxes, np.arange(200), np.linspace(1, 0, 200)), points)
    np.testing.assert_array_equal(found.class_ids, np.flatnonzero(kept))
    np.testing.assert_array_equal(found.boxes, boxes[kept])
    nothing = Detections(np.zeros((0, 7)), np.zeros(0, np.int64), np.zeros(0))
    assert len(drop_empty(nothing, points).boxes) == 0
    assert len(drop_empty(found, points[:0]).boxes) == 0
