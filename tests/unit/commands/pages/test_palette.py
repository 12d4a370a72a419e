"""Colours that can be told apart, the same for a label wherever it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from commands.pages.palette import (
    NO_INSTANCE,
    NO_LABEL,
    STRUCTURE,
    color_features,
    color_instances,
    color_labels,
    distinct_colors,
    lab_of,
    label_colors,
)
from shards.synthetic.furniture import LABEL_NAMES

RUN_NAMES = tuple(name for name in LABEL_NAMES if name != "unlabelled")
JUST_NOTICEABLE = 2.3  # of a distance in L*a*b*


@pytest.mark.parametrize("count", [10, 20, 40])
def test_colours_are_far_apart(count: int) -> None:
    colors = np.concatenate([distinct_colors(count), np.array([*STRUCTURE.values(), NO_LABEL, (255, 255, 255)])])
    lab = lab_of(colors)
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1000 * np.eye(len(lab))
    assert apart[:count].min() > 9 * JUST_NOTICEABLE, "furniture, of anything"
    assert apart.min() > 5 * JUST_NOTICEABLE, "wall and paper"
    assert (distinct_colors(5) == colors[:5]).all(), "more labels change no colour"


def test_more_labels_than_colours_begin_again() -> None:
    assert (distinct_colors(100)[64:] == distinct_colors(36)).all()


def test_a_label_has_its_colour_whichever_others_stand_before_it() -> None:
    of_dataset, of_run = label_colors(LABEL_NAMES), label_colors(RUN_NAMES)
    for name, color in zip(RUN_NAMES, of_run, strict=True):
        assert (of_dataset[LABEL_NAMES.index(name)] == color).all()
    assert (np.ptp(label_colors(list(STRUCTURE)).astype(int), axis=1) < 80).all(), "structure is quiet"
    assert label_colors(()).shape == (0, 3)
    assert (label_colors(("wall", "chair", "wall"))[[0, 2]] == STRUCTURE["wall"]).all()


def test_what_has_no_label_and_no_instance_has_a_colour_of_its_own() -> None:
    names = ("wall", "chair", "table")
    colors = color_labels(np.array([-1, 0, 2, 3]), names)
    assert colors.tolist() == [list(NO_LABEL), *label_colors(names)[[0, 2]].tolist(), list(NO_LABEL)]
    instances = color_instances(np.array([[0, 700], [700, 9]]))
    assert instances.shape == (2, 2, 3)
    assert instances[0, 0].tolist() == list(NO_INSTANCE)
    assert (instances[0, 1] == instances[1, 0]).all()
    assert (instances[0, 1] != instances[1, 1]).any()


def test_features_are_coloured_by_what_varies_most_whatever_their_axes_are() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(500, 3)) * [9.0, 3.0, 1.0]
    axes = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    features = hidden @ axes[:3] + 5.0
    colors, kept = color_features(features)
    assert kept == pytest.approx(1.0)
    for channel in range(3):
        assert abs(np.corrcoef(colors[:, channel], hidden[:, channel])[0, 1]) > 0.97
    order = rng.permutation(500)
    np.testing.assert_allclose(color_features(features[order])[0].astype(int), colors[order].astype(int), atol=1)
    turned = color_features(features @ np.diag([1, -1, 1, 1, 1, 1, 1, 1.0]))[0]
    assert min(np.abs(turned[:, 0].astype(int) - each).max() for each in (colors[:, 0], 255 - colors[:, 0])) <= 2
    assert (color_features(features - 7.0)[0] == colors).mean() > 0.99, "the middle does not count"


def test_a_sign_of_a_direction_is_chosen_by_its_largest_entry() -> None:
    along = np.linspace(0, 1, 101)
    rising, _ = color_features(np.stack([3 * along, along], axis=1))
    falling, _ = color_features(np.stack([-3 * along, along], axis=1))
    assert rising[0, 0] == 0
    assert rising[-1, 0] == 255
    assert falling[0, 0] == 255, "the largest entry grows to the other side"


@pytest.mark.parametrize("features", [np.ones((4, 5)), np.zeros((1, 2)), np.arange(3.0)[:, None]])
def test_features_without_three_directions_are_grey_where_they_have_none(features: np.ndarray) -> None:
    colors, kept = color_features(features)
    assert colors.shape == (len(features), 3)
    assert (colors[:, 1:] == 128).all()
    assert kept == (1.0 if np.ptp(features) else 0.0)
