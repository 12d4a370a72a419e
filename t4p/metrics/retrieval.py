"""Top-1 pair retrieval: does a point find its own pixel among the pixels of the same frame?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def choose_candidates(cell: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    """Pick pairs of one frame from distinct cells, one pair at random from each.

    A voxel may occur twice; its two queries are then equal, and at most one of them can find its own cell. Where a
    bottleneck voxel is larger than a cell this is a ceiling below 1 on what any network can score.

    Args:
        cell: (P,) image cell of each pair.
        count: how many cells.

    Returns:
        (count,) int64 rows of the pairs, or None where the frame has not that many cells.
    """
    shuffled = rng.permutation(len(cell))
    _, first = np.unique(cell[shuffled], return_index=True)
    if len(first) < count:
        return None
    return shuffled[rng.permutation(first)[:count]]


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
