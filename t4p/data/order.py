"""Which rank reads which sample at which step: a pure function of (shard table, seed, epoch, step).

Nothing here reads a file or keeps a position. A run is resumed from its global step alone, on any number of ranks.

One epoch is built in four moves, each drawn from the epoch's own random words:
1. the shards are permuted and laid end to end;
2. that line is closed to a ring and opened again at a random sample, so that nothing always falls on a boundary;
3. the ring is cut into as many ranges as there are streams, and a permutation says which range serves as which stream;
4. each stream is shuffled within blocks.
Position p of the epoch is then sample p // num_streams of stream p mod num_streams.

Moves 2 and 3 are for small datasets: with one shard of 100 samples and 64 streams the blocks hold one or two samples,
and without them every epoch would draw the same batches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

# The last word of the Philox counter: keeps the draws of the four moves apart. Changing one changes every run's order.
_SHARD_ORDER = 1
_RING_START = 2
_RANGE_ORDER = 3
_BLOCK_ORDER = 4


def steps_per_epoch(num_samples: int, global_batch_size: int) -> int:
    """Whole batches in one epoch; the last num_samples mod global_batch_size positions are left out.

    Raises:
        ValueError: there are fewer samples than one batch needs, or the batch is not positive.
    """
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size is {global_batch_size}; it must be at least 1")
    if num_samples < global_batch_size:
        raise ValueError(
            f"the dataset has {num_samples} samples, fewer than one global batch of {global_batch_size}; "
            f"set train.global_batch_size to {max(num_samples, 1)} or less, or add data"
        )
    return num_samples // global_batch_size


def epoch_and_step(step: int, num_samples: int, global_batch_size: int) -> tuple[int, int]:
    """Where a run stands after `step` optimizer steps.

    Args:
        step: optimizer steps since the start of the run, 0 or more: the whole state of the data side.

    Returns:
        epoch: the epoch that holds this step.
        step_in_epoch: its index there, in [0, steps_per_epoch).

    Raises:
        ValueError: as steps_per_epoch, or step is negative.
    """
    if step < 0:
        raise ValueError(f"step is {step}; it counts from 0")
    return divmod(step, steps_per_epoch(num_samples, global_batch_size))


def rank_positions(
    step_in_epoch: int, global_batch_size: int, grad_accum_steps: int, micro_step: int, rank: int, world_size: int
) -> IntArray:
    """Positions of one epoch that one rank reads for one micro-batch.

    Step i is positions [iB, (i + 1)B); micro-batch m of A is the m-th of its A equal parts; rank r of W takes the
    positions p with p mod W = r. The union over ranks is therefore the same for every W, and shares differ by at most
    one. With W above B / A some ranks get nothing in some micro-batches: they still enter every collective.

    Returns:
        (n,) int64 positions, increasing.

    Raises:
        ValueError: the batch does not divide into micro-batches, there are more ranks than samples in a batch, or an
            index is out of range.
    """
    if step_in_epoch < 0:
        raise ValueError(f"step_in_epoch is {step_in_epoch}; it counts from 0")
    if global_batch_size < 1 or grad_accum_steps < 1 or global_batch_size % grad_accum_steps:
        raise ValueError(
            f"a global batch of {global_batch_size} does not divide into {grad_accum_steps} equal micro-batches; "
            "train.global_batch_size must be a multiple of train.grad_accum_steps"
        )
    if not 0 <= micro_step < grad_accum_steps:
        raise ValueError(f"micro_step is {micro_step}; it must be in [0, {grad_accum_steps}), train.grad_accum_steps")
    if not 1 <= world_size <= global_batch_size:
        raise ValueError(
            f"the world size is {world_size} but the global batch has {global_batch_size} samples; "
            "each rank needs at least one: use fewer workers or a larger train.global_batch_size"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; it must be in [0, {world_size}), the world size")
    micro_batch_size = global_batch_size // grad_accum_steps
    start = step_in_epoch * global_batch_size + micro_step * micro_batch_size
    first = start + (rank - start) % world_size
    return np.arange(first, start + micro_batch_size, world_size, dtype=np.int64)


class EpochOrder:
    """The order of one epoch, addressable at any position.

    Building it costs O(num_shards); a read costs the blocks it touches, never what lies before them. Blocks in use are
    kept, one per stream, so reading on costs next to nothing. Instances pickle.
    """

    def __init__(
        self,
        samples_per_shard: NDArray[Any],
        seed: int,
        epoch: int,
        num_streams: int = 64,
        shuffle_block: int = 2048,
    ) -> None:
        """
        Args:
            samples_per_shard: (num_shards,) int, samples in each shard, in the manifest's order; 0 is allowed.
            seed: seed of the run, in [0, 2^64).
            epoch: 0 or more.
            num_streams: streams read side by side. Part of a run's identity: changing it changes the order.
            shuffle_block: samples of one stream shuffled among themselves; likewise.

        Raises:
            ValueError: an argument is out of range, or there is no sample at all.
        """
        counts = np.asarray(samples_per_shard)
        if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
            raise ValueError(
                f"samples_per_shard must be a 1-D integer array without negative entries, "
                f"got {counts.dtype} of shape {counts.shape}"
            )
        if not 0 <= seed < 2**64 or not 0 <= epoch < 2**64:
            raise ValueError(f"seed and epoch must be in [0, 2^64), got seed {seed} and epoch {epoch}")
        if num_streams < 1 or shuffle_block < 1:
            raise ValueError(
                f"num_streams and shuffle_block must be at least 1, got {num_streams} streams and a block of "
                f"{shuffle_block} (data.streams, data.shuffle_block)"
            )
        self.num_samples = int(counts.sum(dtype=np.int64))
        if self.num_samples == 0:
            raise ValueError(f"the dataset is empty: {len(counts)} shards hold no sample")
        self._words = _EpochWords(int(seed), int(epoch))
        self._num_streams = int(num_streams)
        self._shuffle_block = int(shuffle_block)

        self._shard_order = _permutation(self._words.draw(len(counts), _SHARD_ORDER))
        self._shard_stops = np.cumsum(counts[self._shard_order], dtype=np.int64)
        self._shard_starts = self._shard_stops - counts[self._shard_order]
        self._ring_start = int(self._words.draw(1, _RING_START)[0] % np.uint64(self.num_samples))

        # Streams 0 .. (num_samples mod num_streams - 1) hold one sample more: exactly those that p mod num_streams
        # visits once more.
        stream_of_range = _permutation(self._words.draw(self._num_streams, _RANGE_ORDER))
        self._stream_sizes = np.full(self._num_streams, self.num_samples // self._num_streams, dtype=np.int64)
        self._stream_sizes[: self.num_samples % self._num_streams] += 1
        range_sizes = self._stream_sizes[stream_of_range]
        self._stream_starts = np.empty(self._num_streams, dtype=np.int64)
        self._stream_starts[stream_of_range] = np.cumsum(range_sizes) - range_sizes
        self._last_block: dict[int, tuple[int, IntArray]] = {}  # stream -> (block index, its permutation)

    def samples(self, start: int, stop: int) -> IntArray:
        """Samples at positions [start, stop) of the epoch.

        Returns:
            (stop - start, 2) int64, (shard_index, sample_index) in position order.

        Raises:
            ValueError: the range leaves the epoch.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise ValueError(f"positions [{start}, {stop}) leave the epoch's {self.num_samples} positions")
        return self.samples_at(np.arange(start, stop, dtype=np.int64))

    def samples_at(self, positions: IntArray) -> IntArray:
        """Samples at any positions, in the order given; touches only the streams that they fall in.

        Args:
            positions: (n,) int64.

        Returns:
            (n, 2) int64, (shard_index, sample_index).

        Raises:
            ValueError: a position leaves the epoch.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not (positions.min() >= 0 and positions.max() < self.num_samples):
            raise ValueError(
                f"positions {positions.min()} to {positions.max()} leave the epoch's {self.num_samples} positions"
            )
        index_in_stream, stream = np.divmod(positions, self._num_streams)
        ring_position = self._stream_starts[stream] + self._shuffled(stream, index_in_stream)
        line_position = (ring_position + self._ring_start) % self.num_samples
        # side="right" steps over empty shards, which stop where they start.
        slot = np.searchsorted(self._shard_stops, line_position, side="right")
        return np.stack([self._shard_order[slot], line_position - self._shard_starts[slot]], axis=1)

    def _shuffled(self, stream: IntArray, index_in_stream: IntArray) -> IntArray:
        """Send each index of a stream through the permutation of its block."""
        shuffled = np.empty_like(index_in_stream)
        block, index_in_block = np.divmod(index_in_stream, self._shuffle_block)
        by_block = np.lexsort((block, stream))
        changes = (np.diff(stream[by_block]) != 0) | (np.diff(block[by_block]) != 0)
        for group in np.split(by_block, np.flatnonzero(changes) + 1):
            if len(group):
                permutation = self._block_permutation(int(stream[group[0]]), int(block[group[0]]))
                shuffled[group] = block[group[0]] * self._shuffle_block + permutation[index_in_block[group]]
        return shuffled

    def _block_permutation(self, stream: int, block: int) -> IntArray:
        kept_block, permutation = self._last_block.get(stream, (None, None))
        if kept_block != block or permutation is None:
            length = min(self._shuffle_block, int(self._stream_sizes[stream]) - block * self._shuffle_block)
            permutation = _permutation(self._words.draw(length, _BLOCK_ORDER, stream, block))
            self._last_block[stream] = (block, permutation)
        return permutation


@dataclass(frozen=True)
class _EpochWords:
    """Random 64-bit words of one (seed, epoch), addressed by what they are for.

    Raw Philox output is a pure function of (key, counter): the same on every machine and in every numpy, which a
    Generator's shuffle does not promise.
    """

    seed: int
    epoch: int

    def draw(self, count: int, purpose: int, stream: int = 0, block: int = 0) -> NDArray[np.uint64]:
        key = np.array([self.seed, self.epoch], dtype=np.uint64)
        counter = np.array([0, stream, block, purpose], dtype=np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw(count)


def _permutation(words: NDArray[np.uint64]) -> IntArray:
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
