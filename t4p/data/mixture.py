"""Which dataset of a mixture each position takes its sample from: a repeating pattern, computed once from the weights.

The first n positions hold n x w_k samples of dataset k to within one, for every n and k: proportional fairness as in
Baruah, Cohen, Plaxton and Varvel, "Proportionate progress" (Algorithmica 1996). The j-th sample of a dataset of weight
w may come from position floor(j / w) on and has to come before ceil((j + 1) / w); taking the one that has to come first
always meets all of them on a single line of positions.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

LONGEST_PATTERN = 100_000  # positions: weights of five digits


@dataclass(frozen=True, eq=False)
class Mixture:
    """The pattern of datasets.

    Attributes:
        datasets: (Q,) int64, the dataset of each position of the pattern.
        before: (Q,) int64, positions of that dataset before it in the pattern.
        counts: (D,) int64, positions of each dataset in the pattern.
    """

    datasets: IntArray
    before: IntArray
    counts: IntArray

    @classmethod
    def of_weights(cls, weights: Sequence[float]) -> Mixture:
        """The shortest pattern of these weights, which need not add up to 1; as exact as they are written.

        Raises:
            ValueError: a weight is not above 0, or no pattern of LONGEST_PATTERN positions has them.
        """
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights are {list(weights)}; wanted numbers above 0")
        exact = [Fraction(str(weight)) for weight in weights]
        unit = lcm(*(fraction.denominator for fraction in exact))
        counts = [int(fraction * unit) for fraction in exact]
        shared = gcd(*counts)
        counts = [count // shared for count in counts]
        if sum(counts) > LONGEST_PATTERN:
            raise ValueError(
                f"weights are {list(weights)}: no pattern of up to {LONGEST_PATTERN} samples has just these shares; "
                "give weights of fewer digits"
            )
        datasets = _pattern(counts)
        before = np.empty_like(datasets)
        for dataset, count in enumerate(counts):
            before[datasets == dataset] = np.arange(count)
        return cls(datasets, before, np.array(counts, dtype=np.int64))

    def locate(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """The dataset of each position, and which of that dataset's samples it takes, counted from the first position.

        Args:
            positions: (n,) int64, 0 or more, without end.
        """
        rounds, within = np.divmod(positions, len(self.datasets))
        datasets = self.datasets[within]
        return datasets, rounds * self.counts[datasets] + self.before[within]


def _pattern(counts: Sequence[int]) -> IntArray:
    """Earliest deadline first, over one period; ties go to the dataset that is named first."""
    length = sum(counts)
    released = [(0, dataset, 0) for dataset in range(len(counts))]  # (position, dataset, how many of it came before)
    heapq.heapify(released)
    due: list[tuple[int, int, int]] = []
    pattern = np.empty(length, dtype=np.int64)
    for position in range(length):
        while released and released[0][0] <= position:
            _, dataset, number = heapq.heappop(released)
            heapq.heappush(due, (-(-(number + 1) * length // counts[dataset]), dataset, number))
        _, dataset, number = heapq.heappop(due)
        pattern[position] = dataset
        if number + 1 < counts[dataset]:
            heapq.heappush(released, ((number + 1) * length // counts[dataset], dataset, number + 1))
    return pattern
