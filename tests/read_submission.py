"""Reads back what ScanNet's benchmark takes, as its page describes it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_labels(file: Path) -> NDArray[np.int64]:
    """(N,) ids of the vertices of a scene."""
    return np.array([int(line) for line in file.read_text().splitlines()], np.int64)


def read_masks(file: Path) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
    """(P, N) masks, (P,) ids and (P,) scores of a scene."""
    masks, ids, scores = [], [], []
    for line in file.read_text().splitlines():
        name, number, score = line.split(" ")
        digits = np.frombuffer((file.parent / name).read_bytes(), np.uint8).reshape(-1, 2)
        assert set(np.unique(digits[:, 0])) <= {ord("0"), ord("1")}
        assert set(np.unique(digits[:, 1])) == {ord("\n")}
        masks.append(digits[:, 0] == ord("1"))
        ids.append(int(number))
        scores.append(float(score))
    return np.array(masks, bool), np.array(ids, np.int64), np.array(scores, np.float64)
