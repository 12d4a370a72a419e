"""Colours that can be told apart, the same for a label wherever it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from commands.pages.palette import (
    NO_INSTANCE,
    NO_LABEL,
    STRUCTURE,
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
