"""Top-1 pair retrieval: does a point find its own pixel among the pixels of the same frame?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_CANDIDATES = 256  # cells that compete: chance finds the right one in 1 of so many


def choose_candidates(
    cell: NDArray[np.int64], num_points: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Pick pairs of one frame from distinct cells, each with the voxel that most of its points lie in.

    (A voxel that shares a single point with a cell at its edge belongs to the cell beside it: measured on real frames,
    with pairs chosen at random even the mean feature of all cells of a voxel finds the right cell half as often.) A
    voxel may still represent two cells; then at most one of its two queries can be right.

    Args:
        cell: (P,) image cell of each pair.
        num_points: (P,) points that the two ends of each pair share.
        count: how many cells.

    Returns:
        (count,) int64 rows of the pairs, or None where the frame has not that many cells.
    """
    by_cell = np.lexsort((-num_points, cell))
    _, first = np.unique(cell[by_cell], return_index=True)
    if len(first) < count:
        return None
    return by_cell[rng.permutation(first)[:count]]


def top1_retrieval(queries: NDArray[np.float32], candidates: NDArray[np.float32]) -> float:
    """Share of queries whose own candidate is more similar than every other one.

    Args:
        queries: (M, D) unit-norm.
        candidates: (M, D) unit-norm; row i belongs to query i.

    Returns:
        In [0, 1]; a tie with another candidate counts as a miss, so constant embeddings score 0 and not 1.
    """
    similarity = queries @ candidates.T
    own = similarity.diagonal().copy()
    np.fill_diagonal(similarity, -np.inf)
    return float((own > similarity.max(axis=1)).mean())
