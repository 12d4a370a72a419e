"""Instances without a head for them: neighbouring groups of one label."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import generate_binary_structure, label

from t4p.tasks.named_groups import FEWEST_VOXELS, join_groups


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_of_single_voxels_they_are_the_connected_components_of_each_label(seed, num_labels):
    random = np.random.default_rng(seed)
    size = tuple(random.integers(1, 9, 3))
    filled = random.random(size) < 0.6
    coords = np.argwhere(filled).astype(np.int32)
    shares = random.dirichlet(np.ones(num_labels), len(coords)).astype(np.float32).reshape(len(coords), num_labels)
    found = join_groups(coords, np.arange(len(coords)), shares)
    labels = shares.argmax(1) if len(coords) else np.zeros(0, int)
    wanted = set()
    for name in range(num_labels):
        of_label = np.zeros(size, bool)
        of_label[tuple(coords[labels == name].T)] = True
        components, count = label(of_label, generate_binary_structure(3, 3))
        for component in range(1, count + 1):
            rows = components[tuple(coords.T)] == component
            if rows.sum() >= FEWEST_VOXELS:
                wanted.add((rows.tobytes(), name, round(float(shares[rows, name].mean()), 4)))
    assert {
        (mask.tobytes(), int(name), round(float(score), 4))
        for mask, name, score in zip(found.masks, found.class_ids, found.scores, strict=True)
    } == wanted
    assert (np.diff(found.scores) <= 0).all()


def test_a_group_has_one_label_that_of_its_mean():
    coords = np.array([(x, 0, 0) for x in range(20)], np.int32)
    groups = np.repeat([0, 1], 10)
    shares = np.tile(np.array([[0.4, 0.6]], np.float32), (20, 1))
    shares[:3] = [1.0, 0.0]  # three of ten: 0.58 against 0.42
    found = join_groups(coords, groups, shares)
    assert found.masks.tolist() == [[False] * 10 + [True] * 10, [True] * 10 + [False] * 10]
    assert found.class_ids.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores, [0.6, 0.58], atol=1e-6)
