"""Scored samples as scenes: who is taken for whom, what is painted as what, and which samples are kept."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from commands.evaluate import BestAndWorst
from commands.pages.point_cloud import draw_cloud
from commands.pages.scene_pair import ColorLayer, NamedLayer, draw_pair
from commands.pages.scored_scene import match_objects, paint_labels, paint_objects, show_sample
from t4p.tasks.scored import Objects, ScoredSample

LABELS = ("chair", "table")


def objects(masks: list[list[int]], label_ids: list[int], scores: list[float] | None = None) -> Objects:
    held = np.array(masks, bool).reshape(len(masks), -1)
    return Objects(np.array(label_ids), np.ones(len(masks)) if scores is None else np.array(scores),
                   np.zeros((len(masks), 7)), held)  # fmt: skip


def test_a_found_object_is_the_true_one_of_its_label_that_it_overlaps_most_and_the_surest_chooses_first() -> None:
    truth = objects([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]], [0, 0])
    found = objects(
        [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]],
        [0, 0, 0, 1],
        [0.9, 0.8, 0.7, 0.6],
    )
    # The second is the better one, but the first was surer; a quarter is too little; the last has another label.
    assert match_objects(truth, found).tolist() == [0, -1, -1, -1]
    assert match_objects(truth, found[np.array([False, True, False, False])]).tolist() == [0]
    none = found[np.zeros(4, bool)]
    assert match_objects(none, found).tolist() == [-1] * 4
    assert match_objects(truth, none).tolist() == []


def test_boxes_are_matched_by_their_own_overlap() -> None:
    box = np.array([0.0, 0, 0, 1, 1, 1, 0])
    truth = Objects(np.array([1]), np.ones(1), box[None], None)
    moved = np.stack([box + [0.5, 0, 0, 0, 0, 0, 0], box + [0.7, 0, 0, 0, 0, 0, 0]])  # IoU 1/3 and 0.18
    found = Objects(np.array([1, 1]), np.array([0.2, 0.9]), moved, None)
    assert match_objects(truth, found).tolist() == [0, -1]


def test_objects_have_numbers_and_a_found_one_the_colour_of_the_true_one_that_it_is() -> None:
    truth = objects([[1, 1, 0, 0, 0], [0, 0, 1, 0, 0]], [0, 0])
    found = objects([[1, 1, 0, 0, 0], [0, 1, 0, 1, 1]], [0, 1], [0.5, 0.9])
    painted = paint_objects(np.zeros((5, 3), np.float32), truth, found, LABELS)
    assert painted.names == ("chair 1", "chair 2", "not there: table", "no object")
    assert [layer.ids.tolist() for layer in painted.layers] == [[0, 0, 1, 3, 3], [0, 2, 3, 2, 2]], "the surer is above"
    assert [(each.layer, each.ids.tolist()) for each in painted.boxes] == [(0, [0, 1]), (1, [0, 2])]
    assert len(painted.colors) == len(painted.names)


def test_labels_are_right_or_wrong_where_there_is_a_truth() -> None:
    painted = paint_labels(np.array([0, 1, -1]), np.array([0, 0, 1]), LABELS)
    said = [[painted.names[name] for name in layer.ids] for layer in painted.layers]
    assert said == [["chair", "table", "no label"], ["chair", "chair", "table"], ["right", "wrong", "no label"]]


def sample(score: float, predicted: int = 0) -> ScoredSample:
    points = np.random.default_rng(0).random((30, 3)).astype(np.float32) * 4
    counts = np.array([[predicted == 0, predicted == 1, 0], [0, 0, 0]], np.int64)
    labels = np.full(30, predicted)
    return ScoredSample("a", "mIoU", score, points, labels, np.zeros(30, np.int64), counts, SimpleNamespace())


def test_the_best_and_the_worst_sample_are_kept_and_all_are_counted() -> None:
    looked = BestAndWorst()
    scores = [0.5, math.nan, 0.9, 0.1, 0.9, 0.1]
    samples = [sample(score, place % 2) for place, score in enumerate(scores)]
    for each in samples:
        looked.take(each)
    assert looked._best is samples[2], "the first of equals"
    assert looked._worst is samples[3]
    assert looked.counts is not None
    assert looked.counts.tolist() == [[3, 3, 0], [0, 0, 0]]
    assert BestAndWorst().scenes(SimpleNamespace()) == ()


def test_what_stands_in_a_page_is_what_a_scene_has_point_by_point() -> None:
    """As templates/scenes.js reads it."""
    colors = np.random.default_rng(1).integers(0, 256, (30, 3)).astype(np.uint8)
    shown = sample(0.5, 1)
    pair = show_sample("best", shown, LABELS, colors)
    assert "mIoU 50.0 %, 30 voxels" in pair.text
    data, blobs = draw_pair(pair)
    cloud = data["cloud"]
    points = np.frombuffer(blobs["points"], "<u2").reshape(-1, 3) * cloud["step"] + cloud["low"]
    row = np.linalg.norm(points[:, None] - shown.points, axis=2).argmin(axis=1)
    assert sorted(row.tolist()) == list(range(30))
    np.testing.assert_allclose(points, shown.points[row], atol=1e-3)
    light = np.frombuffer(blobs["light"], np.uint8)
    assert len(light) == 30
    assert light.min() > 0.5 * 255, "shaded, and no colour is lost"
    for place, (layer, told) in enumerate(zip(pair.layers, data["layers"], strict=True)):
        assert told == {"name": layer.name, "has_names": isinstance(layer, NamedLayer)}
        if isinstance(layer, ColorLayer):
            np.testing.assert_array_equal(np.frombuffer(blobs[f"layer-{place}"], np.uint8).reshape(-1, 3), colors[row])
        else:
            np.testing.assert_array_equal(np.frombuffer(blobs[f"layer-{place}"], "<u2"), layer.ids[row])


@pytest.mark.parametrize("cut_height", [None, 2.0])
def test_a_box_that_reaches_beyond_the_points_keeps_its_place(cut_height: float | None) -> None:
    points = np.random.default_rng(0).random((200, 3)).astype(np.float32) * [4, 3, 2.6]
    box = np.array([[4.0, 3.0, 1.0, 2.0, 1.0, 1.0, 0.0]])
    cloud = draw_cloud(points, box, 100, cut_height)
    assert len(cloud.points) == 100
    edges = cloud.edges * cloud.view["step"] + cloud.view["low"]
    np.testing.assert_allclose(edges.max(axis=0), [5.0, 3.5, 1.5], atol=1e-3)
    cut = cloud.view["cut"]
    assert (cut is None) == (cut_height is None)
    if cut is not None:
        assert 1.9 < cut["height"] < 2.1
        assert 0 < cut["low"][0] < 0.3
        assert 3.7 < cut["high"][0] < 4
