"""ScanNet's semantic protocol: cases by hand, properties, and a reference that counts sets point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t4p.metrics.semantic import SemanticScores, best_trivial_miou, confusion, evaluate, scores

SEEDS = range(200)


def random_case(seed):
    """Few ids, so that classes are absent, ignored and predicted though invalid in many of the cases."""
    rng = np.random.default_rng(seed)
    ids = rng.permutation(np.arange(-3, 12))
    num_classes, num_ignored = rng.integers(1, 6), rng.integers(0, 3)
    class_ids, ignore_ids = ids[:num_classes].tolist(), ids[num_classes : num_classes + num_ignored].tolist()
    count = int(rng.integers(0, 40))
    targets = rng.choice([*class_ids, *ignore_ids], size=count).astype(rng.choice([np.int64, np.int32, np.int8]))
    predictions = np.where(rng.random(count) < 0.5, targets, rng.integers(-5, 14, count))
    return predictions, targets, class_ids, ignore_ids


def by_sets(predictions, targets, class_ids, ignore_ids):
    """The protocol in its own words, one set of point numbers per class."""
    scored = {i for i, target in enumerate(targets) if target not in ignore_ids}
    iou, recall, right = {}, {}, 0
    for class_id in class_ids:
        true = {i for i in scored if targets[i] == class_id}
        said = {i for i in scored if predictions[i] == class_id}
        right += len(true & said)
        iou[class_id] = len(true & said) / len(true | said) if true else math.nan
        recall[class_id] = len(true & said) / len(true) if true else math.nan
    means = [
        float(np.mean([value for value in by_class.values() if not math.isnan(value)]))
        if any(not math.isnan(value) for value in by_class.values())
        else math.nan
        for by_class in (iou, recall)
    ]
    support = {class_id: sum(targets[i] == class_id for i in scored) for class_id in class_ids}
    return SemanticScores(iou, recall, *means, right / len(scored) if scored else math.nan, support)


def assert_same(found, wanted):
    for name in ("iou", "recall"):
        assert list(getattr(found, name)) == list(getattr(wanted, name))
        assert list(getattr(found, name).values()) == pytest.approx(list(getattr(wanted, name).values()), nan_ok=True)
    numbers = [(each.miou, each.macc, each.accuracy) for each in (found, wanted)]
    assert numbers[0] == pytest.approx(numbers[1], nan_ok=True)
    assert found.support == wanted.support


def test_the_case_computed_by_hand():
    #                  two of three 1s found, one 2 taken for 1, one 2 found
    found = evaluate(np.array([1, 1, 2, 1, 2]), np.array([1, 1, 1, 2, 2]), [1, 2])
    assert found.iou == {1: 2 / 4, 2: 1 / 3}
    assert found.recall == {1: 2 / 3, 2: 1 / 2}
    assert found.miou == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found.macc == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.accuracy == 3 / 5
    assert found.num_points == 5


def test_ignored_ground_truth_is_skipped_whatever_was_predicted_there():
    found = evaluate(np.array([5, 5, 9, 0]), np.array([5, 0, 0, 255]), [5, 9], ignore_ids=[0, 255])
    assert found.iou[5] == 1.0
    assert found.num_points == 1
    assert found.accuracy == found.miou == 1.0


def test_an_invalid_prediction_is_a_false_negative_and_a_false_positive_of_none():
    # 0 (unlabelled), 7 (no class) and -1 on points of class 2.
    found = evaluate(np.array([1, 2, 0, 7, -1]), np.array([1, 2, 2, 2, 2]), [1, 2], ignore_ids=[0])
    assert found.iou == {1: 1.0, 2: 1 / 4}
    assert found.accuracy == 2 / 5
    assert confusion([1, 2, 0, 7, -1], [1, 2, 2, 2, 2], [1, 2], [0]).tolist() == [[1, 0, 0], [0, 1, 3]]


def test_a_class_absent_from_the_ground_truth_has_no_score_and_no_part_in_the_means():
    found = evaluate(np.array([1, 1, 3, 1]), np.array([1, 1, 1, 1]), [1, 2, 3])
    assert found.iou[1] == found.recall[1] == 3 / 4
    assert math.isnan(found.iou[2])  # neither there nor predicted
    assert math.isnan(found.iou[3])  # predicted though not there
    assert math.isnan(found.recall[3])
    assert found.miou == found.macc == 3 / 4


@pytest.mark.parametrize("empty", [np.zeros(0, np.int64), []])
def test_nothing_to_score_is_nan_everywhere(empty):
    found = evaluate(empty, empty, [4, 2])
    assert list(found.iou) == [4, 2]
    assert all(map(math.isnan, [*found.iou.values(), *found.recall.values(), found.miou, found.macc, found.accuracy]))
    assert found.num_points == 0
    all_ignored = evaluate(np.array([4, 2]), np.array([0, 0]), [4, 2], [0])
    assert math.isnan(all_ignored.miou)
    assert all_ignored.num_points == 0


def test_scannets_ids_keep_their_places():
    class_ids = [*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39]
    targets = np.repeat(np.array(class_ids, np.uint16), 3)
    predictions = np.where(targets == 39, 40, targets).astype(np.uint8)
    found = evaluate(predictions, targets, class_ids, ignore_ids=[0])
    assert found.iou == {class_id: float(class_id != 39) for class_id in class_ids}
    assert found.miou == found.macc == found.accuracy == pytest.approx(19 / 20)


@pytest.mark.parametrize("seed", SEEDS)
def test_agrees_with_sets_of_points(seed):
    case = random_case(seed)
    assert_same(evaluate(*case), by_sets(*case))


@pytest.mark.parametrize("seed", SEEDS)
def test_order_and_shape_of_points_and_cutting_into_scenes_do_not_matter(seed):
    predictions, targets, class_ids, ignore_ids = random_case(seed)
    wanted = evaluate(predictions, targets, class_ids, ignore_ids)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(targets))
    assert_same(evaluate(predictions[shuffled], targets[shuffled], class_ids, ignore_ids), wanted)
    column = evaluate(predictions[:, None], targets[:, None], class_ids, ignore_ids)
    assert_same(column, wanted)
    cuts = np.sort(rng.integers(0, len(targets) + 1, 3))
    scenes = list(zip(np.split(predictions, cuts), np.split(targets, cuts), strict=True))
    assert_same(evaluate([p for p, _ in scenes], [t for _, t in scenes], class_ids, ignore_ids), wanted)
    counts = sum(confusion(p, t, class_ids, ignore_ids) for p, t in scenes)
    np.testing.assert_array_equal(counts, confusion(predictions, targets, class_ids, ignore_ids))
    assert_same(scores(counts, class_ids), wanted)
    assert counts.sum() == wanted.num_points


@pytest.mark.parametrize("seed", SEEDS)
def test_a_perfect_prediction_scores_one_where_a_class_is_present(seed):
    _, targets, class_ids, ignore_ids = random_case(seed)
    found = evaluate(targets, targets, class_ids, ignore_ids)
    present = set(targets.tolist()) - set(ignore_ids)
    assert found.iou == pytest.approx({i: 1.0 if i in present else math.nan for i in class_ids}, nan_ok=True)
    if present:
        assert found.miou == found.macc == found.accuracy == 1.0


def test_plain_lists_and_generators_of_scenes_are_welcome():
    assert evaluate([1, 2], [1, 1], [1, 2]).accuracy == 0.5
    assert evaluate([[1, 2], [1]], [[1, 1], [1]], [1, 2]).accuracy == pytest.approx(2 / 3)
    scenes = (np.full(n, 1) for n in (1, 0, 2))
    assert evaluate(scenes, [np.full(n, 1) for n in (1, 0, 2)], [1]).num_points == 3
    assert math.isnan(evaluate([], [], [1]).miou)


@pytest.mark.parametrize(
    ("predictions", "targets", "class_ids", "ignore_ids", "message"),
    [
        (np.array([1.0]), np.array([1]), [1], [], "predictions are float64; wanted an integer label each"),
        (np.array([1]), np.array([np.nan]), [1], [], "targets are float64; wanted an integer label"),
        (np.array([True]), np.array([1]), [1], [], "predictions are bool"),
        (np.zeros(0, np.float32), np.zeros(0, int), [1], [], "predictions are float32"),
        (np.array([1, 1]), np.array([1]), [1], [], r"predictions have shape \(2,\), targets \(1,\)"),
        (np.array([1, 1]), np.array([1, 7]), [1], [0], "targets hold 7, neither a class nor ignored; add what counts"),
        (np.array([1]), np.array([2**64 - 1], np.uint64), [1], [-1], "does not fit int64"),
        (np.array([1]), np.array([1]), [], [], "class_ids is empty"),
        (np.array([1]), np.array([1]), [1, 2, 1], [], "class_ids holds 1 more than once"),
        (np.array([1]), np.array([1]), [1], [1], "1 is in class_ids and in ignore_ids"),
        (np.array([1]), np.array([1]), [1.5], [], "class_ids are float64"),
        ([np.array([1])], [], [1], [], r"predictions of 1 scene\(s\), targets of 0"),
    ],
)
def test_what_cannot_be_scored_is_refused(predictions, targets, class_ids, ignore_ids, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predictions, targets, class_ids, ignore_ids)


def test_an_error_names_the_scene():
    with pytest.raises(ValueError, match=r"scene 1 of 2: targets hold 3, 4, 5, 6, 7, \.\.\., neither"):
        evaluate([np.ones(1, int), np.ones(9, int)], [np.ones(1, int), np.arange(3, 12)], [1])


def test_counts_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"counts have shape \(2, 3\); wanted \(3, 4\) for 3 class ids"):
        scores(confusion([1], [1], [1, 2]), [1, 2, 3])


def test_the_mean_over_some_classes_leaves_out_those_that_are_absent():
    found = evaluate(np.array([1, 1, 2, 1, 2]), np.array([1, 1, 1, 2, 2]), [1, 2, 3])
    assert found.miou_of([1]) == 2 / 4
    assert found.miou_of([1, 2, 3]) == found.miou
    assert math.isnan(found.miou_of([3]))


def test_trivial_predictors_by_hand():
    # 8 walls, 2 chairs. All walls: (8/10 + 0) / 2. Uniform: (4/9 + 1/6) / 2. By shares: (6.4/9.6 + 0.4/3.6) / 2.
    assert best_trivial_miou([8, 0, 2]) == pytest.approx(0.4)
    assert best_trivial_miou([5, 5]) == pytest.approx(1 / 3)  # 2.5 of 7.5 for each, better than (1/2 + 0) / 2
    assert best_trivial_miou([7]) == 1
    assert math.isnan(best_trivial_miou([0, 0]))


@pytest.mark.parametrize("seed", range(20))
def test_trivial_predictors_score_what_their_predictions_do(seed):
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(2, 7))
    targets = rng.choice(num_classes, size=60_000, p=rng.dirichlet(np.full(num_classes, 0.7)))
    support = np.bincount(targets, minlength=num_classes)
    drawn = (
        np.full(targets.shape, support.argmax()),
        rng.integers(num_classes, size=targets.shape),
        rng.permutation(targets),
    )
    best = max(evaluate(predictions, targets, range(num_classes)).miou for predictions in drawn)
    assert best_trivial_miou(support.tolist()) == pytest.approx(best, abs=0.01)
