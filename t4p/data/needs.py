"""What the ranks of one node need, in the order in which they need it: what its fetcher reads ahead. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from t4p.data.course import Course


@dataclass(frozen=True, slots=True)
class Need:
    """A sample, and the samples [start, stop) of its shard that are read at once to have it."""

    shard_index: int
    sample_index: int
    start: int
    stop: int


def needs(course: Course, first_step: int, last_step: int, node: int) -> Iterator[tuple[Need, ...]]:
    """The needs of a node, micro-batch after micro-batch of steps [first_step, last_step).

    What is read at once is the same for all samples of it that the node trains in the epoch, and for nobody else: a
    cache entry of that name has them all. Shards are counted over all datasets.
    """
    for step in range(first_step, last_step):
        for micro_step in range(course.settings.grad_accum_steps):
            batch = course.micro_batch(step, micro_step)
            ranges = course.read_ranges(batch, node)
            ours = np.flatnonzero(ranges[:, 1])
            yield tuple(
                Need(shard, sample, start, stop)
                for (shard, sample), (start, stop) in zip(
                    batch.samples[ours].tolist(), ranges[ours].tolist(), strict=True
                )
            )
