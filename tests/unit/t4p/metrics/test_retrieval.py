"""Top-1 retrieval and the choice of its candidates."""

import numpy as np
import pytest

from t4p.metrics.retrieval import choose_candidates, top1_retrieval


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_a_perfect_match_scores_one_and_chance_scores_chance():
    rng = np.random.default_rng(0)
    candidates = unit(rng.normal(size=(256, 64)))
    assert top1_retrieval(candidates, candidates) == 1.0
    scores = [top1_retrieval(unit(rng.normal(size=(256, 64))), candidates) for _ in range(40)]
    assert np.mean(scores) == pytest.approx(1 / 256, abs=0.003)


def test_constant_embeddings_score_zero():
    same = np.ones((10, 4), np.float32) / 2
    assert top1_retrieval(same, same) == 0.0


def test_the_hand_computed_case():
    queries = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
    candidates = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    # query 0 finds 0; query 1 ties between 1 and 2; query 2 prefers 0.
    assert top1_retrieval(queries, candidates) == pytest.approx(1 / 3)


@pytest.mark.parametrize("seed", range(50))
def test_candidates_come_from_distinct_cells_and_are_their_largest_pairs(seed):
    rng = np.random.default_rng(seed)
    cell = rng.integers(0, 30, size=rng.integers(1, 200))
    num_points = rng.integers(1, 50, size=len(cell))
    num_cells = len(np.unique(cell))
    chosen = choose_candidates(cell, num_points, num_cells, rng)
    assert chosen is not None
    assert sorted(cell[chosen]) == sorted(np.unique(cell))
    for row in chosen:
        assert num_points[row] == num_points[cell == cell[row]].max()
    assert choose_candidates(cell, num_points, num_cells + 1, rng) is None


def test_every_cell_is_chosen_some_time():
    cell, num_points = np.arange(10), np.ones(10, int)
    seen = {int(i) for seed in range(60) for i in choose_candidates(cell, num_points, 3, np.random.default_rng(seed))}
    assert seen == set(range(10))
