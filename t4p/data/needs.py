"""What the ranks of one node need, in the order in which they need it: what its fetcher reads ahead. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from t4p.data.course import Course


@dataclass(frozen=True, slots=True)
class Need:
    """A sample, and the samples [start, stop) of its shard that are read at once to have it."""

    shard_index: int
    sample_index: int
    start: int
    stop: int


class Needs(Protocol):
    """The needs of a node, from the start of a loop to its end. Picklable.

    What is read at once is the same for all samples of it that the node takes until it comes to other ones, and for
    nobody else: a cache entry of that name has them all. Shards are counted over all datasets.
    """

    @property
    def first(self) -> int:
        """The micro-batch that the loop begins with."""

    def since(self, micro_batch: int) -> Iterator[tuple[Need, ...]]:
        """What each micro-batch needs, from this one on."""


@dataclass(frozen=True)
class TrainingNeeds:
    """Of a training.

    Attributes:
        node: whose needs they are.
        steps: [first, last).
    """

    course: Course
    node: int
    steps: tuple[int, int]

    @property
    def first(self) -> int:
        """The micro-batch of the first step; they are counted from the start of the run."""
        return self.steps[0] * self.course.settings.grad_accum_steps

    def since(self, micro_batch: int) -> Iterator[tuple[Need, ...]]:
        """What each micro-batch needs, from this one on."""
        step, skipped = divmod(micro_batch, self.course.settings.grad_accum_steps)
        return islice(self._of_steps(step), skipped, None)

    def _of_steps(self, first_step: int) -> Iterator[tuple[Need, ...]]:
        for step in range(first_step, self.steps[1]):
            for micro_step in range(self.course.settings.grad_accum_steps):
                batch = self.course.micro_batch(step, micro_step)
                ranges = self.course.read_ranges(batch, self.node)
                ours = np.flatnonzero(ranges[:, 1])
                yield tuple(
                    Need(shard, sample, start, stop)
                    for (shard, sample), (start, stop) in zip(
                        batch.samples[ours].tolist(), ranges[ours].tolist(), strict=True
                    )
                )
