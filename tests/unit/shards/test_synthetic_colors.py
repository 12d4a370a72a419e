"""Colours do not give the class away: whoever looks at colours alone does little better than chance."""

import numpy as np
import pytest

from shards.synthetic.appearance import color_image, draw_appearance
from shards.synthetic.furniture import LABEL_NAMES
from shards.synthetic.raycast import Render
from shards.synthetic.room import NUM_FACES, build_room
from shards.synthetic.view import make_view

NUM_CLASSES = len(LABEL_NAMES) - 1
CHANCE = 1 / NUM_CLASSES
LEVELS = 6  # of each colour channel


@pytest.fixture(scope="module")
def pixels() -> list[tuple[np.ndarray, np.ndarray]]:
    """(colors (N, 3) uint8, class (N,) from 0) of rooms to learn from, and of others to be tested on."""
    halves = []
    for first in (0, 80):
        views = [make_view(2, i, frame, 48, 36) for i in range(first, first + 80) for frame in (1, 9)]
        colors = np.concatenate([view.color.reshape(-1, 3) for view in views])
        classes = np.concatenate([view.exact.semantic.ravel() for view in views]).astype(int) - 1
        halves.append((colors, classes))
    return halves


def bins(colors: np.ndarray) -> np.ndarray:
    """(N,) cell of the colour in a cube of LEVELS per channel, each split into equal shares of the pixels."""
    edges = np.quantile(colors, np.arange(1, LEVELS) / LEVELS, axis=0)
    levels = np.stack([np.searchsorted(edges[:, i], colors[:, i]) for i in range(3)])
    return (levels[0] * LEVELS + levels[1]) * LEVELS + levels[2]


def balanced_accuracy(learn: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Of a Bayes classifier over colour cells in which every class is as likely as any other."""
    cells, classes = bins(np.concatenate([learn[0], test[0]])), np.concatenate([learn[1], test[1]])
    num_learn = len(learn[1])
    counts = np.zeros((LEVELS**3, NUM_CLASSES))
    np.add.at(counts, (cells[:num_learn], classes[:num_learn]), 1)
    likelihood = (counts + 1) / (counts + 1).sum(axis=0)
    guesses = likelihood.argmax(axis=1)[cells[num_learn:]]
    truth = classes[num_learn:]
    return float(np.mean([(guesses[truth == i] == i).mean() for i in range(NUM_CLASSES)]))


def test_a_colour_only_classifier_stays_near_chance(pixels: list[tuple[np.ndarray, np.ndarray]]) -> None:
    learn, test = pixels
    assert set(np.unique(test[1])) == set(range(NUM_CLASSES))  # every class occurs
    assert balanced_accuracy(learn, test) < 1.5 * CHANCE
    assert balanced_accuracy(test, learn) < 1.5 * CHANCE


def test_no_side_of_a_room_is_brighter_than_another_on_the_mean() -> None:
    """Walls, floor and ceiling of many rooms, each face once: images show few ceilings, too few to compare."""
    normals = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)], dtype=float)[:, None]
    flat = np.zeros((6, 1))
    brightness = []
    for i in range(300):
        room = build_room(2, i)
        faces = Render(
            depth=flat + 1,
            normals=normals,
            semantic=flat.astype(np.uint8),
            instance=flat.astype(np.uint16),
            surface=np.arange(NUM_FACES)[:, None],
            surface_points=np.zeros((6, 1, 3)),
            cos_incidence=flat + 1,
        )
        color = color_image(faces, draw_appearance(room), np.random.default_rng(0))
        brightness.append(color.mean(axis=(1, 2)))
    mean, deviation = np.mean(brightness, axis=0), np.std(brightness, axis=0)
    assert deviation.min() > 20  # of 255: single rooms differ widely
    standard_error = deviation.max() / np.sqrt(len(brightness))
    assert mean.max() - mean.min() < 5 * standard_error, mean
    assert mean.max() - mean.min() < 10, mean


def test_the_classifier_would_find_colours_that_give_a_class_away(
    pixels: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    tints = np.random.default_rng(0).uniform(-40, 40, (NUM_CLASSES, 3))
    tinted = [(np.clip(colors + tints[classes], 0, 255), classes) for colors, classes in pixels]
    assert balanced_accuracy(*tinted) > 1.5 * CHANCE
