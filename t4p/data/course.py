"""What a run reads and trains, micro-batch after micro-batch, over all its ranks: order, mixture and ranks together.

Pure: every rank, loader and fetcher works it out for itself and comes to the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t4p.data.mixture import Mixture
from t4p.data.order import EpochOrder, Places, block_bytes_of, steps_per_epoch, streams_of_batch
from t4p.data.ranks import Nodes, ranks_of_batch

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pool:
    """Shards that one order runs over: those of all datasets of a run, or of one dataset of a mixture.

    Attributes:
        samples_per_shard: (S,) int64.
        bytes_per_shard: (S,) int64.
        voxels: (N,) of every sample, shard after shard; None where nobody has counted them.
        weight: its share of a mixture, beside those of the others.
    """

    samples_per_shard: IntArray
    bytes_per_shard: IntArray
    voxels: NDArray[np.uint16] | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class CourseSettings:
    """What the course of a run depends on, beside its data.

    Attributes:
        num_streams: of the order, at least.
        shuffle_block: bytes of a block, at most.
    """

    seed: int
    num_streams: int
    shuffle_block: int
    global_batch_size: int
    grad_accum_steps: int
    nodes: Nodes


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The samples of one micro-batch over all ranks, in the order of their positions.

    Attributes:
        epochs: (n,) int64, epoch of each sample's pool.
        samples: (n, 2) int64 of (shard_index, sample_index), shards counted over all pools.
        ranks: (n,) int64, who trains it.
        places: of each pool that takes part, which of the n are its samples, and where its order has them.
    """

    epochs: IntArray
    samples: IntArray
    ranks: IntArray
    places: tuple[tuple[_Walk, IntArray, Places], ...]


class Course:
    """What is trained at any step. Reading on costs little, going back no more. Instances pickle.

    It keeps where it is, so each thread that walks needs one of its own.
    """

    def __init__(self, pools: Sequence[Pool], settings: CourseSettings) -> None:
        """Check that the pools, the batch and the ranks fit each other.

        Args:
            pools: one for a plain run; several make a mixture, by their weights.

        Raises:
            ValueError: they do not; the message says which.
        """
        batch, accum = settings.global_batch_size, settings.grad_accum_steps
        check_batch(batch, accum, settings.nodes.world_size)
        self.settings = settings
        self._mixture = Mixture.of_weights([pool.weight for pool in pools])
        check_pools(pools, batch)
        counts = self._mixture.counts
        self._walks = []
        first_shard = 0
        block_bytes = block_bytes_of(settings.shuffle_block, streams_of_batch(settings.num_streams, batch))
        for index, (pool, of_batch) in enumerate(zip(pools, _of_batch(counts, batch), strict=True)):
            num_samples = int(pool.samples_per_shard.sum())
            # A plain run leaves out what does not fill a batch; a dataset of a mixture goes on in its next epoch.
            length = num_samples if len(pools) > 1 else steps_per_epoch(num_samples, batch) * batch
            share = int(counts[index]) / int(counts.sum())
            num_streams = streams_of_batch(max(1, round(settings.num_streams * share)), of_batch)
            self._walks.append(_Walk(pool, first_shard, length, (settings.seed, num_streams, block_bytes, index)))
            first_shard += len(pool.samples_per_shard)
        self._counted = all(pool.voxels is not None for pool in pools)

    def micro_batch(self, step: int, micro_step: int) -> MicroBatch:
        """The samples of one micro-batch; `step` counts from the start of the run, `micro_step` within the step.

        Raises:
            ValueError: negative, or no micro-step of a step.
        """
        settings = self.settings
        if step < 0 or not 0 <= micro_step < settings.grad_accum_steps:
            raise ValueError(
                f"step is {step} and micro_step {micro_step}; steps count from 0, micro-steps from 0 to "
                f"{settings.grad_accum_steps - 1} (train.grad_accum_steps)"
            )
        size = settings.global_batch_size // settings.grad_accum_steps
        first = step * settings.global_batch_size + micro_step * size
        datasets, numbers = self._mixture.locate(np.arange(first, first + size, dtype=np.int64))
        epochs, samples = np.empty(size, np.int64), np.empty((size, 2), np.int64)
        streams, voxels = np.empty(size, np.int64), np.empty(size, np.int64)
        places = []
        for index in np.unique(datasets).tolist():
            walk, mine = self._walks[index], np.flatnonzero(datasets == index)
            in_epoch, positions = np.divmod(numbers[mine], walk.length)
            for epoch in np.unique(in_epoch).tolist():
                here = mine[in_epoch == epoch]
                found = walk.order(epoch).places_at(positions[in_epoch == epoch])
                epochs[here], streams[here] = epoch, found.streams
                samples[here] = found.samples + np.array((walk.first_shard, 0))
                if self._counted:
                    voxels[here] = walk.voxels_of(found.samples)
                places.append((walk, here, found))
        ranks = ranks_of_batch(streams, np.maximum(voxels, 1) if self._counted else None, settings.nodes)
        return MicroBatch(epochs, samples, ranks, tuple(places))

    def read_ranges(self, batch: MicroBatch, node: int) -> IntArray:
        """What the node reads, at once, to have each sample of a micro-batch that its ranks train.

        A block, where at least half of it is this node's in the epoch; else what its stream holds of the block; for a
        sample that another node reads with its block, the sample alone.

        Returns:
            (n, 2) int64, samples [start, stop) of the shard; (0, 0) for the samples of other nodes.
        """
        nodes = self.settings.nodes
        ranges = np.zeros((len(batch.ranks), 2), np.int64)
        trained = np.array(nodes.of_rank)[batch.ranks] == node
        for walk, here, found in batch.places:
            rows = np.flatnonzero(trained[here])
            samples = found.samples[rows, 1]
            ranges[here[rows]] = np.stack([samples, samples + 1], axis=1)
            ours = nodes.of_stream(found.streams[rows]) == node
            epochs, blocks = batch.epochs[here[rows]], found.blocks[rows]
            for epoch, block, sample, row in zip(
                epochs[ours].tolist(),
                blocks[ours].tolist(),
                samples[ours].tolist(),
                here[rows[ours]].tolist(),
                strict=True,
            ):
                ranges[row] = walk.range_of(epoch, block, sample, nodes, node)
        return ranges


class _Walk:
    """One pool, epoch after epoch."""

    def __init__(self, pool: Pool, first_shard: int, length: int, make: tuple[int, int, int, int]) -> None:
        self.pool = pool
        self.first_shard = first_shard
        self.length = length
        self._make = make
        self._first_samples = np.cumsum(pool.samples_per_shard) - pool.samples_per_shard
        self._orders: dict[int, EpochOrder] = {}
        self._ranges: dict[tuple[int, int, int], list[tuple[int, int]]] = {}

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch; the last two are kept, as a batch may lie in both."""
        if epoch not in self._orders:
            seed, *rest = self._make
            made = EpochOrder(self.pool.samples_per_shard, self.pool.bytes_per_shard, seed, epoch, *rest)
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: made}
            self._ranges = {key: value for key, value in self._ranges.items() if key[0] in self._orders}
        return self._orders[epoch]

    def voxels_of(self, samples: IntArray) -> IntArray:
        """(n,) voxels of (n, 2) samples."""
        assert self.pool.voxels is not None
        return self.pool.voxels[self._first_samples[samples[:, 0]] + samples[:, 1]].astype(np.int64)

    def range_of(self, epoch: int, block: int, sample: int, nodes: Nodes, node: int) -> tuple[int, int]:
        key = (epoch, block, node)
        if key not in self._ranges:
            order = self.order(epoch)
            _, start, stop = order.bounds(block)
            pieces = order.pieces(block)
            of_piece = nodes.of_stream(np.array([piece.stream for piece in pieces])).tolist()
            ours = [(piece.start, piece.stop) for piece, of in zip(pieces, of_piece, strict=True) if of == node]
            whole = 2 * sum(last - first for first, last in ours) >= stop - start
            self._ranges[key] = [(start, stop)] if whole else ours
        return next(found for found in self._ranges[key] if found[0] <= sample < found[1])


def check_pools(pools: Sequence[Pool], global_batch_size: int) -> None:
    """Raise ValueError where a global batch takes more of a pool than it has."""
    if len(pools) == 1:
        steps_per_epoch(int(pools[0].samples_per_shard.sum()), global_batch_size)
        return
    counts = Mixture.of_weights([pool.weight for pool in pools]).counts
    for pool, of_batch in zip(pools, _of_batch(counts, global_batch_size), strict=True):
        num_samples = int(pool.samples_per_shard.sum())
        if of_batch > num_samples:
            raise ValueError(
                f"one global batch of {global_batch_size} takes {of_batch} samples of a dataset that has {num_samples} "
                f"(its weight is {pool.weight:g}): lower its weight or train.global_batch_size"
            )


def _of_batch(counts: IntArray, global_batch_size: int) -> list[int]:
    """Samples of each dataset in a batch, at most."""
    return [-(-global_batch_size * count // sum(counts.tolist())) for count in counts.tolist()]


def check_batch(global_batch_size: int, grad_accum_steps: int, world_size: int) -> None:
    """Raise ValueError unless a global batch divides into micro-batches and every rank gets a part of it."""
    if global_batch_size < 1 or grad_accum_steps < 1 or global_batch_size % grad_accum_steps:
        raise ValueError(
            f"a global batch of {global_batch_size} does not divide into {grad_accum_steps} equal micro-batches; "
            "train.global_batch_size must be a multiple of train.grad_accum_steps"
        )
    if not 1 <= world_size <= global_batch_size:
        raise ValueError(
            f"the world size is {world_size} but the global batch has {global_batch_size} samples; "
            "each rank needs at least one: use fewer workers or a larger train.global_batch_size"
        )
