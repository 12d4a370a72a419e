"""Every sample of some shards once, in their order: who looks at which, and what is read at once for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from t4p.data.needs import Need
from t4p.data.order import IntArray, blocks_of


class Sweep:
    """Parts of equal length, but for one sample, side by side: a rank reads the bytes of its own part alone."""

    def __init__(
        self, samples_per_shard: IntArray, bytes_per_shard: IntArray, block_bytes: int, world_size: int
    ) -> None:
        """
        Args:
            samples_per_shard: (S,) int64.
            bytes_per_shard: (S,) int64.
            block_bytes: of what is read at once, about: the blocks of a training, cut where a part begins or ends.
        """
        self._shards, self._firsts, self._sizes = blocks_of(samples_per_shard, bytes_per_shard, block_bytes)
        self._stops = np.cumsum(self._sizes)
        self._world_size = world_size

    def num_samples(self, rank: int) -> int:
        """Of a rank; none, where there are more ranks than samples."""
        start, stop = self._part(rank)
        return stop - start

    def needs(self, rank: int, first: int = 0) -> Iterator[Need]:
        """What a rank looks at, one after the other, from its `first`-th sample on."""
        start, stop = self._part(rank)
        position = start + first
        while position < stop:
            block = int(np.searchsorted(self._stops, position, side="right"))
            block_stop = int(self._stops[block])
            block_start = block_stop - int(self._sizes[block])
            to_sample = int(self._firsts[block]) - block_start
            low, high = max(block_start, start) + to_sample, min(block_stop, stop) + to_sample
            for sample in range(position + to_sample, high):
                yield Need(int(self._shards[block]), sample, low, high)
            position = block_stop

    def _part(self, rank: int) -> tuple[int, int]:
        total = int(self._sizes.sum())
        return total * rank // self._world_size, total * (rank + 1) // self._world_size


@dataclass(frozen=True)
class SweepNeeds:
    """Of ranks that look at every sample once, each at one after the other: micro-batch i has the i-th of each rank.

    Attributes:
        ranks: of the node.
    """

    sweep: Sweep
    ranks: tuple[int, ...]

    @property
    def first(self) -> int:
        """A sweep begins at its beginning."""
        return 0

    def since(self, micro_batch: int) -> Iterator[tuple[Need, ...]]:
        """What each micro-batch needs, from this one on."""
        for found in zip_longest(*(self.sweep.needs(rank, micro_batch) for rank in self.ranks)):
            yield tuple(need for need in found if need is not None)
