"""Points of many frames become one cloud of bounded size: the mean of what falls into each small cube."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CELL_SIZE = 0.01  # metres, at first
MOST_CELLS = 10_000_000
_BUFFERED = 2_000_000  # points that wait to be merged, so that what is there is sorted once for many frames
_BITS = 21  # of a cell along each axis
_HALF = 1 << (_BITS - 1)


class Fusion:
    """A cloud that grows by frames. Where more than `most_cells` are occupied, cells of twice the edge take over.

    Attributes:
        cell_size: metres, edge of a cube now.
    """

    def __init__(self, cell_size: float = CELL_SIZE, most_cells: int = MOST_CELLS) -> None:
        self.cell_size = cell_size
        self._most_cells = most_cells
        self._keys = np.zeros(0, np.int64)  # ascending, unique
        self._sums = np.zeros((0, 7), np.float64)  # x, y, z, red, green, blue, number of points
        self._waiting: list[NDArray[np.float64]] = []
        self._num_waiting = 0

    def add(self, points: NDArray[np.float64], colors: NDArray[np.uint8]) -> None:
        """Add the points of a frame.

        Args:
            points: (N, 3) metres, world, finite, and no farther from the origin than 2^20 cells (10 km at 1 cm).
            colors: (N, 3).

        Raises:
            ValueError: a point lies farther away.
        """
        if len(points) and float(np.abs(points).max()) >= self.cell_size * (_HALF - 1):
            raise ValueError(
                f"a point lies {float(np.abs(points).max()):g} m from the origin, beyond {self.cell_size * _HALF:g} m"
            )
        rows = np.concatenate([points, colors, np.ones((len(points), 1))], axis=1)
        _, sums = _merge(self._keys_of(points), rows)  # of one frame: a half to a tenth is left
        self._waiting.append(sums)
        self._num_waiting += len(sums)
        if self._num_waiting >= max(_BUFFERED, len(self._keys) // 2):
            self._settle()

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
        """(V, 3) mean points and (V, 3) mean colours, in the order of their cells along x, y and z."""
        self._settle()
        means = self._sums[:, :6] / self._sums[:, 6:]
        return means[:, :3], np.rint(means[:, 3:]).astype(np.uint8)

    def _settle(self) -> None:
        sums = np.concatenate([self._sums, *self._waiting])
        self._waiting, self._num_waiting = [], 0
        self._keys, self._sums = _merge(self._keys_of(sums[:, :3] / sums[:, 6:]), sums)
        while len(self._keys) > self._most_cells:
            self.cell_size *= 2
            self._keys, self._sums = _merge(self._keys_of(self._sums[:, :3] / self._sums[:, 6:]), self._sums)

    def _keys_of(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        cells = np.floor(points / self.cell_size).astype(np.int64) + _HALF
        return (cells[:, 0] << (2 * _BITS)) | (cells[:, 1] << _BITS) | cells[:, 2]


def _merge(keys: NDArray[np.int64], rows: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ascending unique keys, and the sum of the rows of each."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    return keys[first], np.add.reduceat(rows[order], first, axis=0) if len(first) else rows[:0]
