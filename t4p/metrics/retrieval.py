"""Top-1 pair retrieval: does a point find its own pixel among the pixels of the same frame?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def choose_candidates(
    voxel: NDArray[np.int64], cell: NDArray[np.int64], count: int, rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """Pick pairs of one frame so that no voxel and no cell occurs twice.

    A cell that occurred twice would be a second right answer; a voxel that occurred twice would have two.

    Args:
        voxel: (P,) voxel of each pair.
        cell: (P,) image cell of each pair.
        count: how many to pick.

    Returns:
        (count,) int64 rows of the pairs, or None where the frame has not that many.
    """
    chosen: list[int] = []
    used_voxels: set[int] = set()
    used_cells: set[int] = set()
    for index in rng.permutation(len(voxel)).tolist():
        v, c = int(voxel[index]), int(cell[index])
        if v in used_voxels or c in used_cells:
            continue
        used_voxels.add(v)
        used_cells.add(c)
        chosen.append(index)
        if len(chosen) == count:
            return np.array(chosen, dtype=np.int64)
    return None


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
