"""ScanNet's instance protocol: cases by hand, properties, and a reference that follows its words by sets."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from t4p.metrics.instance import InstanceScene, evaluate

TABLE, CHAIR, WALL = 7, 5, 1  # the wall is not evaluated
CLASSES = [TABLE, CHAIR]


def scene(num_points, true, predicted):
    """From (class, number, points) of the ground truth and (class, score, points) of predictions; the rest is wall."""
    semantic, instance = np.full(num_points, WALL), np.zeros(num_points, int)
    for class_id, number, points in true:
        semantic[points], instance[points] = class_id, number
    masks = np.zeros((len(predicted), num_points), bool)
    for mask, (_, _, points) in zip(masks, predicted, strict=True):
        mask[points] = True
    class_ids = np.array([class_id for class_id, _, _ in predicted], int)
    return InstanceScene(semantic, instance, masks, class_ids, np.array([score for _, score, _ in predicted], float))


def one_chair(*predicted, num_points=1000):
    """A chair of 200 points, the first ones."""
    return scene(num_points, [(CHAIR, 1, slice(200))], predicted)


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_a_perfect_prediction_scores_one_and_an_absent_class_nothing():
    found = evaluate([one_chair((CHAIR, 0.3, slice(200)))], CLASSES)
    assert found.ap[CHAIR] == found.ap50[CHAIR] == found.ap25[CHAIR] == 1.0
    assert list(found.ap) == CLASSES
    assert math.isnan(found.ap[TABLE])
    assert found.mean_ap == found.mean_ap50 == found.mean_ap25 == 1.0


def test_a_surer_false_positive_halves_the_precision_where_the_chair_is_found():
    # At 0.5: precision 1/2, recall 1; at 0.9: 0, 0; the end: 1, 0. Widths 1/2, 1/2, 0.
    false = (CHAIR, 0.9, slice(300, 450))
    wrong_class = scene(1000, [(CHAIR, 1, slice(200)), (TABLE, 1, slice(300, 450))], [(CHAIR, 0.5, slice(200)), false])
    found = evaluate([wrong_class], CLASSES)
    assert found.ap25[CHAIR] == found.ap50[CHAIR] == 1 / 4
    assert found.ap[CHAIR] == pytest.approx(1 / 4)
    assert found.ap[TABLE] == 0.0  # there, never predicted
    assert found.mean_ap50 == 1 / 8
    # With one score for both there is one point, and the end beside it: (1/2 + 1) / 2.
    equal = replace(wrong_class, scores=np.array([0.5, 0.5]))
    assert evaluate([equal], CLASSES).ap50[CHAIR] == 3 / 4


@pytest.mark.parametrize(("num_points", "thresholds_passed"), [(100, 0), (101, 1), (110, 1), (111, 2), (181, 9)])
def test_overlap_is_strictly_greater(num_points, thresholds_passed):
    # 100 of 200 points are 0.5, and 110 are 0.55, to the point.
    found = evaluate([one_chair((CHAIR, 1.0, slice(num_points)))], CLASSES)
    assert found.ap25[CHAIR] == 1.0
    assert found.ap50[CHAIR] == float(thresholds_passed > 0)
    assert found.ap[CHAIR] == pytest.approx(thresholds_passed / 9)


def test_the_less_sure_of_two_matches_is_a_false_positive():
    both = [(CHAIR, 0.8, slice(200)), (CHAIR, 0.9, slice(190))]
    # Precision 1/2, 1, 1 at recall 1, 1, 0; widths 0, 1/2, 1/2: a duplicate after the last find costs nothing.
    assert evaluate([one_chair(*both)], CLASSES).ap50[CHAIR] == 1.0
    # With another chair, found at 0.5: 2/3, 1/2, 1, 1 at recall 1, 1/2, 1/2, 0; widths 1/4 each.
    two = scene(1000, [(CHAIR, 1, slice(200)), (CHAIR, 2, slice(200, 400))], [*both, (CHAIR, 0.5, slice(200, 400))])
    assert evaluate([two], CLASSES).ap50[CHAIR] == pytest.approx((2 / 3 + 1 / 2 + 1 + 1) / 4)


def test_only_the_same_class_matches():
    found = evaluate([one_chair((TABLE, 0.9, slice(200)), (WALL, 0.9, slice(200)))], CLASSES)
    assert found.ap25[CHAIR] == 0.0
    assert math.isnan(found.ap25[TABLE])


@pytest.mark.parametrize(
    ("ignored", "counts"),
    [
        ((WALL, 3, slice(300, 351)), False),  # a class that is not evaluated
        ((TABLE, 0, slice(300, 351)), False),  # no instance, of any class
        ((CHAIR, -1, slice(300, 351)), False),
        ((CHAIR, 2, slice(300, 351)), False),  # an instance of the class with 51 points
        ((TABLE, 2, slice(300, 351)), True),  # a small one of another class is just not a chair
        ((WALL, 3, slice(300, 350)), True),  # a half is not more than a half
    ],
)
def test_a_prediction_that_is_mostly_ignored_does_not_count(ignored, counts):
    ground_truth = [(CHAIR, 1, slice(200)), (TABLE, 1, slice(300, 400)), ignored]
    predicted = [(CHAIR, 0.5, slice(200)), (CHAIR, 0.9, slice(300, 400))]
    found = evaluate([scene(1000, ground_truth, predicted)], CLASSES)
    assert found.ap50[CHAIR] == (1 / 4 if counts else 1.0)
    # 51 of 100 are not more than 0.55.
    assert found.ap[CHAIR] == pytest.approx((8 * 1 / 4 + found.ap50[CHAIR]) / 9)
    assert found.ap25[CHAIR] == (1 / 4 if ignored[0] == TABLE and ignored[1] == 2 else 1.0)


def test_ignored_points_of_a_match_do_not_matter():
    # 150 of 250 points are void, and still it is a match at 0.25 (100 of 350).
    assert evaluate([one_chair((CHAIR, 0.9, slice(100, 350)))], CLASSES).ap25[CHAIR] == 1.0


def test_small_regions_are_neither_found_nor_predicted():
    small = scene(1000, [(CHAIR, 1, slice(99))], [(CHAIR, 0.9, slice(100))])
    assert math.isnan(evaluate([small], CLASSES).ap[CHAIR])
    assert evaluate([small], CLASSES, min_region_size=99).ap25[CHAIR] == 1.0
    assert evaluate([one_chair((CHAIR, 0.9, slice(99)))], CLASSES).ap25[CHAIR] == 0.0
    assert evaluate([one_chair((CHAIR, 0.9, slice(99)))], CLASSES, min_region_size=99).ap25[CHAIR] == 1.0


def test_at_a_quarter_the_prediction_that_came_second_may_find_the_next_instance():
    # Both overlap both halves of the first 200 points; as in the script only who finds something is taken.
    halves = [(CHAIR, 1, slice(100)), (CHAIR, 2, slice(100, 200))]
    found = evaluate([scene(1000, halves, [(CHAIR, 0.9, slice(200)), (CHAIR, 0.8, slice(200))])], CLASSES)
    # Right at 0.9, wrong and right at 0.8: precision 2/3, 1, 1 at recall 1, 1/2, 0; widths 1/4, 1/2, 1/4.
    assert found.ap25[CHAIR] == pytest.approx(2 / 3 / 4 + 1 / 2 + 1 / 4)
    assert found.ap50[CHAIR] == 0.0


def test_scenes_share_one_curve_and_instance_numbers_are_their_own():
    scenes = [one_chair((CHAIR, 0.9, slice(200))), one_chair(), one_chair((CHAIR, 0.3, slice(200)), num_points=200)]
    # Two of three found: precision 1 at recall 2/3, 1/3, 0; widths 1/6, 1/3, 1/6.
    assert evaluate(iter(scenes), CLASSES).ap50[CHAIR] == pytest.approx(2 / 3)


def test_nothing_to_score_is_nan():
    empty = scene(0, [], [])
    for scenes in ([], [empty], [scene(300, [], [(CHAIR, 0.5, slice(300))])]):
        found = evaluate(scenes, CLASSES)
        assert all(map(math.isnan, [*found.ap.values(), found.mean_ap, found.mean_ap50, found.mean_ap25]))
    # Predictions of the present class that are all left out are none.
    assert evaluate([one_chair(), scene(300, [], [(CHAIR, 0.5, slice(300))])], CLASSES).ap25[CHAIR] == 0.0
    as_lists = InstanceScene([CHAIR] * 100, [1] * 100, [], [], [])
    assert evaluate([as_lists, empty], CLASSES).ap[CHAIR] == 0.0


# ---- the reference ---------------------------------------------------------------------------------------------------


def by_words(scenes, class_ids, size):
    """{class: (ap, ap50, ap25)}."""
    table = {}
    for class_id in class_ids:
        by_overlap = [curve_area(scenes, class_id, class_ids, size, Fraction(p, 20)) for p in (5, *range(10, 19))]
        table[class_id] = (np.mean(by_overlap[1:]), by_overlap[1], by_overlap[0])
    return table


def curve_area(scenes, class_id, class_ids, size, overlap):
    right, wrong, num_true = [], [], 0
    for each in scenes:
        points = range(len(each.semantic))
        void = {i for i in points if each.semantic[i] not in class_ids or each.instance[i] <= 0}
        true = [
            {i for i in points if each.semantic[i] == class_id and each.instance[i] == number}
            for number in sorted({number for number in each.instance if number > 0})
        ]
        small = set().union(*(region for region in true if len(region) < size))
        true = [region for region in true if len(region) >= size]
        num_true += len(true)
        predicted = [
            (each.scores[p], {i for i in points if each.masks[p][i]})
            for p in sorted(range(len(each.scores)), key=lambda p: -each.scores[p])
            if each.class_ids[p] == class_id and each.masks[p].sum() >= size
        ]
        pairs = [[Fraction(len(t & p), len(t | p)) > overlap for t in true] for _, p in predicted]
        free = set(range(len(predicted)))
        for t in range(len(true)):
            matches = [p for p in sorted(free) if pairs[p][t]]
            right += [predicted[p][0] for p in matches[:1]]
            wrong += [predicted[p][0] for p in matches[1:]]
            free -= set(matches[:1])
        for (score, region), matched in zip(predicted, pairs, strict=True):
            if not any(matched) and Fraction(len(region & (void | small)), len(region)) <= overlap:
                wrong.append(score)
    if not num_true:
        return math.nan
    curve = [(0.0, 1.0)]  # recall, precision; surest first
    for score in sorted({*right, *wrong}, reverse=True):
        found, false = sum(s >= score for s in right), sum(s >= score for s in wrong)
        curve.append((found / num_true, found / (found + false)))
    recalls = [0.0, *(recall for recall, _ in curve), curve[-1][0]]
    return sum(precision * (recalls[i + 2] - recalls[i]) / 2 for i, (_, precision) in enumerate(curve))


def random_split(seed):
    """Regions of a line of points, so that instances are small, void, split, merged and found twice in many cases."""
    rng = np.random.default_rng(seed)
    scenes = []
    for _ in range(rng.integers(0, 4)):
        num_points, num_regions = int(rng.integers(0, 40)), int(rng.integers(1, 9))
        region = np.sort(rng.integers(0, num_regions, num_points))
        semantic = rng.choice([CHAIR, CHAIR, TABLE, WALL], num_regions)[region]
        instance = rng.integers(-1, 5, num_regions)[region]
        masks = np.zeros((rng.integers(0, 8), num_points), bool)
        for mask in masks:
            mask[:] = np.isin(region, rng.integers(0, num_regions, rng.integers(1, 3)))
            mask ^= rng.random(num_points) < rng.choice([0, 0.1, 0.3])
        scores = rng.permutation(len(masks)) / 8 if seed % 2 else rng.integers(0, 3, len(masks)) / 2
        class_ids = rng.choice([CHAIR, CHAIR, TABLE, WALL], len(masks))
        scenes.append(InstanceScene(semantic, instance, masks, class_ids, scores))
    return scenes, int(rng.integers(1, 6))


def columns(found):
    return np.array([[found.ap[c], found.ap50[c], found.ap25[c]] for c in found.ap])


def test_agrees_with_the_words_of_the_protocol():
    scored = 0
    for seed in range(200):
        scenes, size = random_split(seed)
        found = evaluate(scenes, CLASSES, size)
        wanted = np.array(list(by_words(scenes, CLASSES, size).values()))
        np.testing.assert_allclose(columns(found), wanted, atol=1e-12, err_msg=f"seed {seed}")
        present = wanted[~np.isnan(wanted[:, 0])]
        means = present.mean(axis=0) if len(present) else [math.nan] * 3
        np.testing.assert_allclose([found.mean_ap, found.mean_ap50, found.mean_ap25], means, atol=1e-12)
        scored += int((present > 0).sum())
    assert scored > 100  # not a comparison of zeros


def test_order_of_scenes_and_of_predictions_with_distinct_scores_does_not_matter():
    for seed in range(1, 120, 2):
        scenes, size = random_split(seed)
        rng = np.random.default_rng(seed)
        shuffled = []
        for index in rng.permutation(len(scenes)):
            each = scenes[index]
            order = rng.permutation(len(each.scores))
            shuffled.append(
                replace(each, masks=each.masks[order], class_ids=each.class_ids[order], scores=each.scores[order])
            )
        wanted = columns(evaluate(scenes, CLASSES, size))
        np.testing.assert_allclose(columns(evaluate(shuffled, CLASSES[::-1], size)), wanted[::-1], atol=1e-12)


def test_the_ground_truth_as_prediction_scores_one():
    for seed in range(50):
        scenes, size = random_split(seed)
        perfect = []
        for each in scenes:
            keys = sorted({(s, i) for s, i in zip(each.semantic, each.instance, strict=True) if i > 0})
            masks = np.array([(each.semantic == s) & (each.instance == i) for s, i in keys], bool)
            ids = np.array([s for s, _ in keys], int)
            scores = np.random.default_rng(seed).random(len(keys))
            perfect.append(
                replace(each, masks=masks.reshape(len(keys), len(each.semantic)), class_ids=ids, scores=scores)
            )
        ap = columns(evaluate(perfect, CLASSES, size))
        np.testing.assert_allclose(ap[~np.isnan(ap)], 1.0, atol=1e-12)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instance": np.zeros(999, int)}, r"semantic has shape \(1000,\), instance \(999,\); wanted \(N,\) each"),
        ({"semantic": np.zeros(1000)}, "semantic are float64; wanted an integer label each"),
        ({"masks": np.zeros((1, 999), bool)}, r"masks have shape \(1, 999\); wanted \(P, 1000\)"),
        ({"masks": np.zeros(1000, bool)}, r"masks have shape \(1000,\)"),
        ({"masks": np.ones((1, 1000), np.uint8)}, "masks are uint8; wanted bool"),
        ({"class_ids": np.array([5, 5])}, r"class_ids have shape \(2,\); wanted \(1,\), one for each of the masks"),
        ({"class_ids": np.array([5.0])}, "class_ids are float64"),
        ({"scores": np.array([0.5, 0.5])}, r"scores have shape \(2,\); wanted \(1,\)"),
        ({"scores": np.array([np.nan])}, r"scores\[0\] is nan; wanted finite numbers"),
        ({"scores": np.array([np.inf])}, r"scores\[0\] is inf"),
        ({"scores": np.array(["high"])}, "scores are <U4; wanted numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_its_scene(changes, message):
    good = one_chair((CHAIR, 0.5, slice(200)))
    with pytest.raises(ValueError, match="scene 1: " + message):
        evaluate([good, replace(good, **changes)], CLASSES)


def test_ids_that_repeat_and_regions_of_nothing_are_refused():
    with pytest.raises(ValueError, match="class_ids holds 5 more than once"):
        evaluate([], [5, 5])
    with pytest.raises(ValueError, match="min_region_size is 0; wanted at least 1"):
        evaluate([], [5], 0)
