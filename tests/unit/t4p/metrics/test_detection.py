"""VoteNet's detection protocol and the overlap of turned boxes: by hand, by properties, and against slow ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t4p.metrics.detection import Boxes, Detections, box_iou, evaluate, suppress

CUBE = [0, 0, 0, 1, 1, 1, 0]
EIGHTH = math.pi / 4


def iou(a, b):
    return box_iou([a], [b])[0, 0]


def random_boxes(rng, count, extent=1.5):
    return np.column_stack(
        [rng.uniform(0, extent, (count, 3)), rng.uniform(0.2, 2, (count, 3)), rng.uniform(-7, 7, count)]
    )


# ---- overlap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        (CUBE, 1.0),
        ([0, 0, 0, 1, 1, 1, math.pi / 2], 1.0),
        ([0, 0, 0, 1, 1, 1, EIGHTH], 1 / math.sqrt(2)),  # an octagon of 2 (sqrt(2) - 1)
        ([1, 0, 0, 1, 1, 1, 0], 0.0),  # a face in common
        ([1, 1, 1, 1, 1, 1, 0], 0.0),  # a corner
        ([0, 0, 1, 1, 1, 1, 0], 0.0),
        ([0.5 + math.sqrt(0.5), 0, 0, 1, 1, 1, EIGHTH], 0.0),  # an edge against a face
        ([0.5, 0, 0, 1, 1, 1, 0], 1 / 3),
        ([0, 0, 0.5, 1, 1, 1, 0], 1 / 3),
        ([0.5, 0.5, 0.5, 1, 1, 1, 0], 1 / 15),
        ([0.1, -0.1, 0.2, 0.5, 0.5, 0.5, 1.234], 1 / 8),  # inside, at any angle
        ([0, 0, 0, 2, 1, 1, 0], 1 / 2),
        ([0, 0, 0, 2, 1, 1, math.pi / 2], 1 / 2),
        ([0.5, 0.5, 0, math.sqrt(2), math.sqrt(2), 1, EIGHTH], 1 / 5),  # a quarter of it: a triangle of 1/2 and ...
        ([0, 0, 0, 0, 1, 1, 0.3], 0.0),  # no volume
        ([9, 0, 0, 1, 1, 1, 0.3], 0.0),
    ],
)
def test_overlaps_by_hand(box, wanted):
    assert iou(CUBE, box) == pytest.approx(wanted, abs=1e-12)
    assert iou(box, CUBE) == pytest.approx(wanted, abs=1e-12)


def test_identical_boxes_overlap_by_one_exactly_and_boxes_of_nothing_by_zero():
    boxes = random_boxes(np.random.default_rng(0), 200)
    assert (np.diagonal(box_iou(boxes, boxes)) == 1).all()
    nothing = [[1, 2, 3, 0, 0, 0, 0.5], [1, 2, 3, 1, 0, 1, 0.5]]
    np.testing.assert_array_equal(box_iou(nothing, nothing), np.zeros((2, 2)))


def test_yaw_is_counter_clockwise():
    # A bar towards (1, 1); a small cube lies on it there, and none of it towards (1, -1).
    bar, there = [0, 0, 0, 4, 0.2, 1, EIGHTH], [1, 1, 0, 0.1, 0.1, 1, EIGHTH]
    assert iou(bar, there) == pytest.approx(0.01 / 0.8)
    assert iou([*bar[:6], -EIGHTH], there) == 0.0


def corners(box):
    cx, cy, _, dx, dy, _, yaw = box
    c, s = math.cos(yaw), math.sin(yaw)
    around = [(-dx / 2, -dy / 2), (dx / 2, -dy / 2), (dx / 2, dy / 2), (-dx / 2, dy / 2)]
    return [(cx + c * x - s * y, cy + s * x + c * y) for x, y in around]


def iou_by_clipping(a, b):
    """Corners of one outline, cut by the sides of the other one after the other; the shoelace formula of the rest."""
    left, around = corners(a), corners(b)
    for (x0, y0), (x1, y1) in zip(around, around[1:] + around[:1], strict=True):
        inside = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in left]
        cut = []
        for i, (point, side) in enumerate(zip(left, inside, strict=True)):
            before, side_before = left[i - 1], inside[i - 1]
            if side * side_before < 0:
                t = side_before / (side_before - side)
                cut.append(tuple(p + t * (q - p) for p, q in zip(before, point, strict=True)))
            if side >= 0:
                cut.append(point)
        left = cut
    area = sum(left[i - 1][0] * y - x * left[i - 1][1] for i, (x, y) in enumerate(left)) / 2
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    shared = max(area, 0) * max(height, 0)
    union = a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - shared
    return shared / union if union > 0 else 0.0


def inside(points, box):
    """points (P, S, 3) in boxes (P, 7)."""
    relative = points - box[:, None, :3]
    c, s = np.cos(box[:, None, 6]), np.sin(box[:, None, 6])
    x, y, z = relative[..., 0], relative[..., 1], relative[..., 2]
    local = np.stack([c * x + s * y, c * y - s * x, z], axis=-1)
    return (np.abs(local) <= box[:, None, 3:6] / 2).all(axis=-1)


def test_equal_to_a_monte_carlo_estimate_on_500_pairs():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 500), random_boxes(rng, 500)
    # Points of b, drawn in its own axes: the share of them inside a is the intersection over b's volume.
    local = rng.uniform(-0.5, 0.5, (500, 1000, 3)) * b[:, None, 3:6]
    c, s = np.cos(b[:, None, 6]), np.sin(b[:, None, 6])
    points = np.stack([c * local[..., 0] - s * local[..., 1], s * local[..., 0] + c * local[..., 1], local[..., 2]], -1)
    share = inside(points + b[:, None, :3], a).mean(axis=1)
    found = np.diagonal(box_iou(a, b))
    volume_a, volume_b = (boxes[:, 3:6].prod(axis=1) for boxes in (a, b))
    exact_share = found * (volume_a + volume_b) / (1 + found) / volume_b
    deviation = np.sqrt(exact_share * (1 - exact_share) / 1000)
    assert (found > 0.05).sum() > 100
    assert (np.abs(share - exact_share) <= 5 * deviation + 1e-9).all()
    assert abs(np.mean(share - exact_share)) < 1e-3


# Numbers at which corners meet sides, and others.
lengths = st.sampled_from([0.5, 1.0, 2.0, 3.7, 0.0, 1e4])
places = st.sampled_from([0.0, 0.25, 0.5, 1.0, -1.0, math.sqrt(0.5), 1e-16]) | st.floats(-2, 2)
yaws = st.integers(-9, 9).map(lambda eighths: eighths * EIGHTH) | st.floats(-7, 7)
boxes_of_all_kinds = st.tuples(places, places, places, lengths, lengths, lengths, yaws)


@settings(max_examples=120)
@given(boxes_of_all_kinds, boxes_of_all_kinds, st.floats(-7, 7), st.tuples(places, places, places))
def test_overlap_is_that_of_clipping_symmetric_and_the_same_wherever_both_are_moved(a, b, turn, shift):
    found = iou(a, b)
    assert 0 <= found <= 1
    sizes = a[3:6] + b[3:6]
    if min(sizes) == 0:
        assert found == 0
    if min(sizes) < 0.1 or max(sizes) > 10:
        return  # rounding of the centres, or of far corners, is no longer small beside the smallest size
    assert found == pytest.approx(iou_by_clipping(a, b), abs=1e-9)
    assert iou(b, a) == pytest.approx(found, abs=1e-12)
    assert iou(a, [*b[:6], b[6] + math.pi]) == pytest.approx(found, abs=1e-12)
    c, s = math.cos(turn), math.sin(turn)
    moved = [
        (c * x - s * y + shift[0], s * x + c * y + shift[1], z + shift[2], *full, yaw + turn)
        for x, y, z, *full, yaw in (a, b)
    ]
    assert iou(*moved) == pytest.approx(found, abs=1e-12)


def test_sizes_of_every_order_give_a_number_between_0_and_1():
    rng = np.random.default_rng(2)
    boxes = np.column_stack(
        [rng.uniform(-1, 1, (300, 3)), 10.0 ** rng.uniform(-320, 9, (300, 3)), rng.uniform(-9, 9, 300)]
    )
    boxes[::3, 3:6] = 10.0 ** rng.uniform(-3, 3, (100, 3))
    boxes[::2, :3] = boxes[0, :3]
    found = box_iou(boxes, boxes)
    assert ((found >= 0) & (found <= 1)).all()
    assert (found > 0).sum() > 300


# ---- suppression -----------------------------------------------------------------------------------------------------


def test_suppression_keeps_the_surest_of_each_class():
    boxes = [CUBE, [0.1, 0, 0, 1, 1, 1, 0], CUBE, [5, 0, 0, 1, 1, 1, 0], [0.2, 0, 0, 1, 1, 1, 0]]
    assert suppress(boxes, [1, 1, 2, 1, 1], [0.5, 0.9, 0.1, 0.7, 0.8], 0.25).tolist() == [1, 3, 2]
    assert suppress(boxes, [1, 1, 2, 1, 1], [0.5] * 5, 0.25).tolist() == [0, 2, 3]  # equal scores in their order
    assert suppress([], [], [], 0.25).tolist() == []


def test_who_is_suppressed_suppresses_nobody_and_the_threshold_itself_is_no_reason():
    row = [[x, 0, 0, 1, 1, 1, 0] for x in (0, 0.5, 1.0)]  # neighbours overlap by a third
    assert suppress(row, [0] * 3, [0.9, 0.8, 0.7], 0.3).tolist() == [0, 2]
    half = [CUBE, [0, 0, 0, 2, 1, 1, 0]]
    assert suppress(half, [0, 0], [1, 2], 0.5).tolist() == [1, 0]
    assert suppress(half, [0, 0], [1, 2], 0.49).tolist() == [1]


def test_suppression_is_greedy_on_random_boxes():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        boxes, ids = random_boxes(rng, 30), rng.integers(0, 2, 30)
        scores = rng.integers(0, 10, 30) / 10
        overlap = box_iou(boxes, boxes)
        kept = []
        for i in sorted(range(30), key=lambda i: -scores[i]):
            if not any(ids[i] == ids[j] and overlap[j, i] > 0.25 for j in kept):
                kept.append(i)
        assert suppress(boxes, ids, scores, 0.25).tolist() == kept
        assert len(kept) < 30


# ---- scores ----------------------------------------------------------------------------------------------------------


def detections(*rows):
    """From (class, score, x) of unit cubes along x."""
    boxes = np.array([[x, 0, 0, 1, 1, 1, 0] for _, _, x in rows], float)
    return Detections(boxes, np.array([c for c, _, _ in rows], int), np.array([s for _, s, _ in rows], float))


def truth(*rows):
    return Boxes([[x, 0, 0, 1, 1, 1, 0] for _, x in rows], [c for c, _ in rows])


def test_a_perfect_prediction_scores_one():
    found = evaluate([detections((3, 0.2, 0), (4, 0.1, 5)), detections()], [truth((4, 5), (3, 0)), truth()])
    assert list(found) == [0.25, 0.5]
    for scores in found.values():
        assert scores.ap == scores.recall == {3: 1.0, 4: 1.0}
        assert scores.map == scores.mar == 1.0


def test_the_curve_by_hand():
    # Right, wrong, right, of three: precision 1, 1/2, 2/3 at recall 1/3, 1/3, 2/3.
    predicted = detections((3, 0.9, 0), (3, 0.8, 50), (3, 0.7, 10))
    found = evaluate([predicted], [truth((3, 0), (3, 10), (3, 20))], [0.5])[0.5]
    assert found.ap[3] == pytest.approx((1 + 2 / 3) / 3)
    assert found.recall[3] == 2 / 3
    # Wrong, right: the envelope takes the later, greater precision.
    found = evaluate([detections((3, 0.9, 50), (3, 0.8, 0))], [truth((3, 0))])[0.5]
    assert found.ap[3] == 1 / 2


def test_a_second_prediction_of_a_box_is_a_false_positive_without_a_second_choice():
    # All three overlap the box at 0 most; that at 0.6 is overlapped too (0.4 / 1.6 by the last), and stays unfound.
    target = truth((3, 0), (3, 0.8))
    predicted = detections((3, 0.9, 0), (3, 0.8, 0.1), (3, 0.7, 0.3))
    assert box_iou(predicted.boxes[2:], target.boxes)[0].min() > 0.25
    found = evaluate([predicted], [target], (0.25,))[0.25]
    assert found.recall[3] == 1 / 2
    assert found.ap[3] == 1 / 2
    # The surer of the two has it, whichever came first.
    found = evaluate([detections((3, 0.1, 0), (3, 0.9, 0.1))], [truth((3, 0))], (0.9, 0.5))
    assert (found[0.9].recall[3], found[0.9].ap[3]) == (1.0, 1 / 2)
    assert (found[0.5].recall[3], found[0.5].ap[3]) == (1.0, 1.0)


def test_overlap_is_strictly_greater():
    half = Detections([[0, 0, 0, 0.5, 1, 1, 0]], [3], [1.0])  # 1/2 to the bit
    found = evaluate([half], [truth((3, 0))], (0.25, 0.5, 0.0))
    assert (found[0.25].map, found[0.5].map, found[0.0].map) == (1.0, 0.0, 1.0)
    apart = evaluate([detections((3, 1, 1))], [truth((3, 0))], (0.0,))
    assert apart[0.0].map == 0.0


def test_equal_scores_keep_their_order_scenes_first():
    right, wrong = detections((3, 0.5, 0)), detections((3, 0.5, 50))
    target = [truth((3, 0)), truth((3, 0))]
    assert evaluate([right, wrong], target)[0.5].ap[3] == 1 / 2
    assert evaluate([wrong, right], target)[0.5].ap[3] == 1 / 4
    assert evaluate([detections((3, 0.5, 50), (3, 0.5, 0))], [truth((3, 0))])[0.5].ap[3] == 1 / 2
    assert evaluate([detections((3, 0.5, 0), (3, 0.5, 50))], [truth((3, 0))])[0.5].ap[3] == 1.0


def test_classes_absent_on_either_side_and_scenes_without_boxes():
    found = evaluate([detections((3, 0.9, 0), (8, 0.9, 0)), detections((3, 0.8, 0))], [truth((3, 0), (5, 0)), truth()])
    assert found[0.5].ap == {3: 1.0, 5: 0.0}  # 8 has no entry, 5 was never predicted
    assert found[0.5].recall == {3: 1.0, 5: 0.0}
    assert found[0.5].map == found[0.5].mar == 1 / 2
    empty = Detections(np.array([]), np.array([]), np.array([]))
    assert evaluate([empty], [truth((3, 0))])[0.25].ap == {3: 0.0}
    for nothing in (evaluate([], []), evaluate([detections((3, 1, 0))], [Boxes([], [])])):
        assert nothing[0.5].ap == nothing[0.5].recall == {}
        assert math.isnan(nothing[0.5].map)
        assert math.isnan(nothing[0.5].mar)


def by_words(predictions, targets, threshold):
    """{class: (ap, recall)}, one prediction after the other."""
    table = {}
    for class_id in {int(c) for target in targets for c in target.class_ids}:
        queue = [
            (scene, row)
            for scene, predicted in enumerate(predictions)
            for row in range(len(predicted.scores))
            if predicted.class_ids[row] == class_id
        ]
        queue.sort(key=lambda place: -predictions[place[0]].scores[place[1]])
        num_true = sum((target.class_ids == class_id).sum() for target in targets)
        taken, curve = set(), []
        for rank, (scene, row) in enumerate(queue, start=1):
            true = np.flatnonzero(targets[scene].class_ids == class_id)
            overlap = [iou_by_clipping(predictions[scene].boxes[row], targets[scene].boxes[t]) for t in true]
            if overlap and max(overlap) > threshold:
                taken.add((scene, true[int(np.argmax(overlap))]))
            curve.append((len(taken) / num_true, len(taken) / rank))
        area, last = 0.0, 0.0
        for index, (recall, _) in enumerate(curve):
            area += (recall - last) * max(precision for _, precision in curve[index:])
            last = recall
        table[class_id] = (area, last)
    return table


def random_split(seed):
    """Boxes near true ones and others; classes that are on one side only; equal scores in every second case."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for _ in range(rng.integers(0, 4)):
        true = random_boxes(rng, rng.integers(0, 5), 3)
        predicted = random_boxes(rng, rng.integers(0, 8), 3)
        true_ids, ids = rng.integers(0, 3, len(true)), rng.integers(0, 4, len(predicted))
        for row in range(len(predicted)):
            if len(true) and rng.random() < 0.7:
                near = rng.integers(len(true))
                predicted[row] = true[near] * rng.uniform(0.9, 1.1, 7)
                ids[row] = true_ids[near]
        scores = rng.random(len(ids)) if seed % 2 else rng.integers(0, 3, len(ids)) / 2
        predictions.append(Detections(predicted, ids, scores))
        targets.append(Boxes(true, true_ids))
    return predictions, targets


def assert_same(found, wanted):
    for name in ("ap", "recall"):
        assert getattr(found, name) == pytest.approx(getattr(wanted, name), abs=1e-12)
    assert (found.map, found.mar) == pytest.approx((wanted.map, wanted.mar), nan_ok=True, abs=1e-12)


def test_agrees_with_the_words_of_the_protocol():
    scored = 0
    for seed in range(200):
        predictions, targets = random_split(seed)
        for threshold, found in evaluate(predictions, targets).items():
            wanted = by_words(predictions, targets, threshold)
            assert list(found.ap) == list(found.recall) == sorted(wanted)
            assert found.ap == pytest.approx({c: ap for c, (ap, _) in wanted.items()}, abs=1e-12), seed
            assert found.recall == pytest.approx({c: recall for c, (_, recall) in wanted.items()}, abs=1e-12)
            if wanted:
                means = np.mean(list(wanted.values()), axis=0)
                assert (found.map, found.mar) == pytest.approx(tuple(means), abs=1e-12)
            scored += sum(0 < ap < 1 for ap, _ in wanted.values())
    assert scored > 100  # not a comparison of zeros


def test_order_of_scenes_and_of_predictions_with_distinct_scores_does_not_matter():
    for seed in range(1, 100, 2):
        predictions, targets = random_split(seed)
        rng = np.random.default_rng(seed)
        scenes = rng.permutation(len(targets))
        orders = [rng.permutation(len(each.scores)) for each in predictions]
        shuffled = [
            Detections(each.boxes[order], each.class_ids[order], each.scores[order])
            for each, order in zip(predictions, orders, strict=True)
        ]
        found = evaluate([shuffled[i] for i in scenes], [targets[i] for i in scenes])
        for threshold, wanted in evaluate(predictions, targets).items():
            assert_same(found[threshold], wanted)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([CUBE[:6]], r"have shape \(1, 6\); wanted \(n, 7\): cx, cy, cz, dx, dy, dz, yaw"),
        (CUBE, r"have shape \(7,\)"),
        (np.zeros((2, 0)), r"have shape \(2, 0\)"),
        ([CUBE, [0, 0, 0, 1, -1, 1, 0]], r"\[1\] has sizes \[1.0, -1.0, 1.0\]; wanted full sizes of 0 or more"),
        ([[0, 0, np.nan, 1, 1, 1, 0]], r"\[0\] is \[.*nan.*\]; wanted finite metres and radians"),
        ([[0, 0, 0, 1, 1, 1, np.inf]], "wanted finite metres"),
        ([[0, 0, 0, 1e10, 1, 1, 0]], r"none beyond 1e\+09 m"),
        ([["a"] * 7], "are <U1; wanted numbers"),
    ],
)
def test_boxes_that_are_none_are_refused_at_every_door(boxes, message):
    count = len(boxes)
    with pytest.raises(ValueError, match="^a" + message if message[0] == "\\" else message):
        box_iou(boxes, [CUBE])
    with pytest.raises(ValueError, match=message):
        box_iou([CUBE], boxes)
    with pytest.raises(ValueError, match=message):
        suppress(boxes, [0] * count, [0.5] * count, 0.25)
    with pytest.raises(ValueError, match="scene 0 of 1: boxes of predictions.*" + message):
        evaluate([Detections(boxes, [0] * count, [0.5] * count)], [truth()])
    with pytest.raises(ValueError, match="scene 0 of 1: boxes of targets.*" + message):
        evaluate([detections()], [Boxes(boxes, [0] * count)])


def test_other_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"predictions of 1 scene\(s\), targets of 0"):
        evaluate([detections()], [])
    for thresholds in ((), 0.25, (1.0,), (-0.1,), (math.nan,)):
        with pytest.raises(ValueError, match=r"iou_thresholds is .*; wanted one or more in \[0, 1\)"):
            evaluate([], [], thresholds)
    with pytest.raises(ValueError, match=r"scene 1 of 2: class_ids have shape \(2,\); wanted \(1,\), .* true boxes"):
        evaluate([detections()] * 2, [truth(), Boxes([CUBE], [1, 2])])
    with pytest.raises(ValueError, match=r"class_ids have shape \(0,\); wanted \(1,\), one for each of the predicted"):
        evaluate([Detections([CUBE], [], [0.5])], [truth()])
    with pytest.raises(ValueError, match=r"scores\[0\] is nan"):
        evaluate([Detections([CUBE], [1], [np.nan])], [truth()])
    with pytest.raises(ValueError, match="class_ids are float64"):
        suppress([CUBE], [1.0], [0.5], 0.25)
    with pytest.raises(ValueError, match=r"iou_threshold is nan; wanted a number in \[0, 1\]"):
        suppress([CUBE], [1], [0.5], math.nan)
