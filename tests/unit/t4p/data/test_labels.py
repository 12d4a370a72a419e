"""Class ids of a dataset to labels of a run, by name."""

import numpy as np
import pytest

from t4p.data.labels import IGNORED, build_label_table, require_labels
from t4p.errors import ConfigError

NAMES = ("unlabelled", "wall", "chair", "table", "chair")  # two ids of one class are fine


def test_ids_are_matched_by_name_and_not_by_number():
    table = build_label_table(NAMES, ("table", "chair", "wall"), ("unlabelled",), "s3://b/rooms")
    ids = np.array([[0, 1, 2], [3, 4, 0]], np.uint16)
    np.testing.assert_array_equal(table.look_up(ids), [[IGNORED, 2, 1], [0, 1, IGNORED]])
    assert table.num_labels == 3


def test_a_star_ignores_every_class_that_is_not_asked_for():
    table = build_label_table(NAMES, ("chair",), ("*",), "s3://b/rooms")
    np.testing.assert_array_equal(table.label_of_id, [IGNORED, IGNORED, 0, IGNORED, 0])


@pytest.mark.parametrize(
    ("names", "labels", "ignored", "message"),
    [
        (
            (),
            ("chair",),
            (),
            r"s3://b/rooms: has no class labels .*give a dataset with semantic labels",
        ),
        (
            NAMES,
            ("chair",),
            ("unlabelled",),
            r"has class\(es\) 'wall', 'table', which are neither in model\.labels nor in data\.ignored_labels",
        ),
        (NAMES, ("chair", "wall"), ("wall", "*"), r"'wall' stand in model\.labels and in data\.ignored_labels"),
    ],
)
def test_classes_that_do_not_fit_are_named(names, labels, ignored, message):
    with pytest.raises(ConfigError, match=message):
        build_label_table(names, labels, ignored, "s3://b/rooms")


def test_a_class_that_one_dataset_lacks_is_nothing_to_worry_about():
    table = build_label_table(("unlabelled", "chair"), ("chair", "wall"), ("unlabelled",), "rooms")
    np.testing.assert_array_equal(table.label_of_id, [IGNORED, 0])
    require_labels([("chair",), ("wall", "chair")], ("chair", "wall"), ("a", "b"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("chairs", "wall"), r"^a, b: no class 'chairs' of model\.labels, did you mean 'chair'\?$"),
        (("zebra",), r"^a, b: no class 'zebra' of model\.labels; known there: 'unlabelled', 'chair', 'wall'$"),
    ],
)
def test_a_label_that_no_dataset_knows_is_refused(labels, message):
    with pytest.raises(ConfigError, match=message):
        require_labels([("unlabelled", "chair"), ("wall",)], labels, ("a", "b"))


def test_many_unknown_classes_are_counted():
    names = [f"class {number}" for number in range(40)]
    with pytest.raises(ConfigError, match=r"'class 1', .*'class 5' and 34 more, which are neither"):
        build_label_table(names, ("class 0",), (), "rooms")


def test_an_id_without_a_name_is_an_error_and_not_a_class():
    table = build_label_table(NAMES, ("chair",), ("*",), "rooms")
    with pytest.raises(ValueError, match=r"class id 7 has no name: the manifest names ids 0 to 4"):
        table.look_up(np.array([1, 7]))
    assert table.look_up(np.zeros(0, np.uint16)).shape == (0,)
