"""Which sample is trained at which step: a pure function of (shard table, seed, epoch, step). Order 2.

Nothing here reads a file or keeps a position. A run is resumed from its global step alone, on any number of ranks.

The unit is the block: samples of one shard that lie side by side in its tar, about `block_bytes` of bytes, so that
object storage is read in large parts. One epoch is built in four moves, each drawn from the epoch's own random words:
1. the blocks of all shards are permuted and laid end to end;
2. that line is closed to a ring and opened again at a random sample, so that nothing always falls on a boundary;
3. the ring is cut into as many ranges as there are streams, and a permutation says which range serves as which stream;
4. each stream is shuffled within what it holds of a block: within a window.
Position p of the epoch is then sample p // num_streams of stream p mod num_streams.

Moves 2 and 3 are for small datasets: with one shard of 100 samples and 64 streams the windows hold one or two samples,
and without them every epoch would draw the same batches. A global batch takes no two samples of a stream
(`streams_of_batch`), so that it touches as many shards as one drawn at random would, however large it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

ORDER_VERSION = 2  # in the state of a run: what was begun in one order cannot go on in another
IN_FLIGHT_BYTES = 16 << 30  # of all blocks that are open at a time: many streams make smaller blocks

# The last word of the Philox counter: keeps the draws of the four moves apart. Changing one changes every run's order.
_BLOCK_ORDER = 1
_RING_START = 2
_RANGE_ORDER = 3
_WINDOW_ORDER = 4


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


def streams_of_batch(num_streams: int, global_batch_size: int) -> int:
    """The streams of an order: a multiple of the global batch, `num_streams` of them or the next such number above.

    A batch then takes its samples from as many streams, and begins at the same ones again and again: the streams of a
    rank are its own.
    """
    return global_batch_size * -(-num_streams // global_batch_size)


def block_bytes_of(shuffle_block: int, num_streams: int) -> int:
    """Bytes of a block: `shuffle_block`, or fewer where so many streams would hold more than IN_FLIGHT_BYTES open."""
    return max(1, min(shuffle_block, IN_FLIGHT_BYTES // num_streams))


@dataclass(frozen=True, eq=False)
class Places:
    """Where the samples of some positions lie, and what is read along with them.

    Attributes:
        samples: (n, 2) int64 of (shard_index, sample_index).
        streams: (n,) int64, the stream of each.
        blocks: (n,) int64, for `EpochOrder.pieces`.
    """

    samples: IntArray
    streams: IntArray
    blocks: IntArray


@dataclass(frozen=True)
class Piece:
    """What one stream holds of a block: samples [start, stop) of its shard."""

    stream: int
    start: int
    stop: int


class EpochOrder:
    """The order of one epoch, addressable at any position.

    Building it costs O(number of blocks); a read costs the windows it touches, never what lies before them. Windows in
    use are kept, one per stream, so reading on costs next to nothing. Instances pickle.
    """

    def __init__(
        self,
        samples_per_shard: NDArray[Any],
        bytes_per_shard: NDArray[Any],
        seed: int,
        epoch: int,
        num_streams: int,
        block_bytes: int,
        dataset_index: int = 0,
    ) -> None:
        """
        Args:
            samples_per_shard: (num_shards,) int, samples in each shard, in the manifest's order; 0 is allowed.
            bytes_per_shard: (num_shards,) int, bytes of each tar.
            seed: seed of the run, in [0, 2^64).
            epoch: 0 or more.
            num_streams: streams read side by side. Part of a run's identity: changing it changes the order.
            block_bytes: bytes of a block, as near as whole samples and equal blocks come to it; likewise.
            dataset_index: among those of a mixture: equal datasets get orders of their own.

        Raises:
            ValueError: an argument is out of range, or there is no sample at all.
        """
        counts = np.asarray(samples_per_shard)
        if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts < 0).any():
            raise ValueError(
                f"samples_per_shard must be a 1-D integer array without negative entries, "
                f"got {counts.dtype} of shape {counts.shape}"
            )
        if np.shape(bytes_per_shard) != counts.shape:
            raise ValueError(f"bytes_per_shard has shape {np.shape(bytes_per_shard)}, samples_per_shard {counts.shape}")
        if not 0 <= seed < 2**64 or not 0 <= epoch < 2**64:
            raise ValueError(f"seed and epoch must be in [0, 2^64), got seed {seed} and epoch {epoch}")
        if num_streams < 1 or block_bytes < 1:
            raise ValueError(
                f"num_streams and block_bytes must be at least 1, got {num_streams} streams and a block of "
                f"{block_bytes} bytes (data.streams, data.shuffle_block)"
            )
        self.num_samples = int(counts.sum(dtype=np.int64))
        if self.num_samples == 0:
            raise ValueError(f"the dataset is empty: {len(counts)} shards hold no sample")
        self.num_streams = int(num_streams)
        self._words = _EpochWords(int(seed), int(epoch), dataset_index)
        self._lay_ring(*blocks_of(counts.astype(np.int64), np.asarray(bytes_per_shard, np.int64), int(block_bytes)))

        # Streams 0 .. (num_samples mod num_streams - 1) hold one sample more: exactly those that p mod num_streams
        # visits once more.
        self._stream_of_range = _permutation(self._words.draw(self.num_streams, _RANGE_ORDER))
        stream_sizes = np.full(self.num_streams, self.num_samples // self.num_streams, dtype=np.int64)
        stream_sizes[: self.num_samples % self.num_streams] += 1
        self._range_stops = np.cumsum(stream_sizes[self._stream_of_range])
        self._stream_stops = np.empty(self.num_streams, dtype=np.int64)
        self._stream_stops[self._stream_of_range] = self._range_stops
        self._stream_starts = self._stream_stops - stream_sizes
        widest = min(int(self._block_sizes.max()), int(stream_sizes.max()))
        self._windows = np.zeros((self.num_streams, widest), np.int32)  # the permutation of each stream's open window
        self._window_starts = np.full(self.num_streams, -1, np.int64)

    def samples(self, start: int, stop: int) -> IntArray:
        """Samples at positions [start, stop) of the epoch.

        Returns:
            (stop - start, 2) int64, (shard_index, sample_index) in position order.

        Raises:
            ValueError: the range leaves the epoch.
        """
        if not 0 <= start <= stop <= self.num_samples:
            raise ValueError(f"positions [{start}, {stop}) leave the epoch's {self.num_samples} positions")
        return self.places_at(np.arange(start, stop, dtype=np.int64)).samples

    def places_at(self, positions: IntArray) -> Places:
        """Where the samples at any positions lie, in the order given; touches only the streams that they fall in.

        Args:
            positions: (n,) int64.

        Raises:
            ValueError: a position leaves the epoch.
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(positions) and not (positions.min() >= 0 and positions.max() < self.num_samples):
            raise ValueError(
                f"positions {positions.min()} to {positions.max()} leave the epoch's {self.num_samples} positions"
            )
        index_in_stream, streams = np.divmod(positions, self.num_streams)
        in_ring = self._stream_starts[streams] + index_in_stream
        blocks = np.searchsorted(self._block_stops, in_ring, side="right")
        block_starts = self._block_stops[blocks] - self._block_sizes[blocks]
        window_starts = np.maximum(block_starts, self._stream_starts[streams])
        window_stops = np.minimum(self._block_stops[blocks], self._stream_stops[streams])
        shuffled = self._shuffled(streams, in_ring, window_starts, window_stops)
        samples = np.stack([self._block_shards[blocks], self._block_firsts[blocks] + shuffled - block_starts], axis=1)
        return Places(samples, streams, blocks)

    def bounds(self, block: int) -> tuple[int, int, int]:
        """A block is samples [start, stop) of a shard: (shard_index, start, stop)."""
        start = int(self._block_firsts[block])
        return int(self._block_shards[block]), start, start + int(self._block_sizes[block])

    def pieces(self, block: int) -> list[Piece]:
        """What the streams hold of a block: together all of it, in the order of the tar."""
        stop = int(self._block_stops[block])
        start = stop - int(self._block_sizes[block])
        to_sample = int(self._block_firsts[block]) - start
        first, last = np.searchsorted(self._range_stops, [start, stop - 1], side="right").tolist()
        edges = [start, *self._range_stops[first:last].tolist(), stop]
        return [
            Piece(stream, edges[k] + to_sample, edges[k + 1] + to_sample)
            for k, stream in enumerate(self._stream_of_range[first : last + 1].tolist())
            if edges[k] < edges[k + 1]
        ]

    def _lay_ring(self, shards: IntArray, firsts: IntArray, sizes: IntArray) -> None:
        """Blocks in the order of the ring; the one that it is opened in counts as two."""
        order = _permutation(self._words.draw(len(shards), _BLOCK_ORDER))
        shards, firsts, sizes = shards[order], firsts[order], sizes[order]
        ring_start = int(self._words.draw(1, _RING_START)[0] % np.uint64(self.num_samples))
        stops = np.cumsum(sizes)
        opened = int(np.searchsorted(stops, ring_start, side="right"))
        head = ring_start - int(stops[opened] - sizes[opened])  # samples of it that come last
        shards, firsts, sizes = (np.roll(column, -opened) for column in (shards, firsts, sizes))
        if head:
            shards, firsts, sizes = (np.append(column, column[0]) for column in (shards, firsts, sizes))
            firsts[0] += head
            sizes[0] -= head
            sizes[-1] = head
        self._block_shards, self._block_firsts, self._block_sizes = shards, firsts, sizes
        self._block_stops = np.cumsum(sizes)

    def _shuffled(self, streams: IntArray, in_ring: IntArray, starts: IntArray, stops: IntArray) -> IntArray:
        """Send each position of the ring through the permutation of its window."""
        shuffled = np.empty_like(in_ring)
        todo = np.argsort(starts, kind="stable")
        while True:
            open_ones = self._window_starts[streams[todo]] == starts[todo]
            now, todo = todo[open_ones], todo[~open_ones]
            shuffled[now] = starts[now] + self._windows[streams[now], in_ring[now] - starts[now]]
            if not len(todo):
                return shuffled
            _, firsts = np.unique(streams[todo], return_index=True)
            for index in todo[firsts].tolist():
                self._open(int(streams[index]), int(starts[index]), int(stops[index]))

    def _open(self, stream: int, start: int, stop: int) -> None:
        self._windows[stream, : stop - start] = _permutation(
            self._words.draw(stop - start, _WINDOW_ORDER, stream, start)
        )
        self._window_starts[stream] = start


def blocks_of(counts: IntArray, sizes_bytes: IntArray, block_bytes: int) -> tuple[IntArray, IntArray, IntArray]:
    """Shard, first sample and number of samples of every block, in the order of the shards.

    A shard is cut into equally many samples as far as they go; samples of very different sizes make blocks of different
    bytes.
    """
    num_blocks = np.clip((sizes_bytes + block_bytes // 2) // block_bytes, 1, np.maximum(counts, 1))
    num_blocks[counts == 0] = 0
    shards = np.repeat(np.arange(len(counts)), num_blocks)
    index_in_shard = np.arange(len(shards)) - np.repeat(np.cumsum(num_blocks) - num_blocks, num_blocks)
    firsts = index_in_shard * counts[shards] // num_blocks[shards]
    stops = (index_in_shard + 1) * counts[shards] // num_blocks[shards]
    return shards, firsts, stops - firsts


@dataclass(frozen=True)
class _EpochWords:
    """Random 64-bit words of one (seed, epoch, dataset), addressed by what they are for.

    Raw Philox output is a pure function of (key, counter): the same on every machine and in every numpy, which a
    Generator's shuffle does not promise.
    """

    seed: int
    epoch: int
    dataset_index: int

    def draw(self, count: int, purpose: int, stream: int = 0, start: int = 0) -> NDArray[np.uint64]:
        key = np.array([self.seed, self.epoch], dtype=np.uint64)
        counter = np.array([0, stream, start, purpose + 16 * self.dataset_index], dtype=np.uint64)
        return np.random.Philox(key=key, counter=counter).random_raw(count)


def _permutation(words: NDArray[np.uint64]) -> IntArray:
    """The order that sorts the words: each carries its index in its low bits, so that plain sorting tells, and fast."""
    bits = max(len(words) - 1, 1).bit_length()
    low = np.uint64((1 << bits) - 1)
    keyed = (words & ~low) | np.arange(len(words), dtype=np.uint64)
    keyed.sort()
    return (keyed & low).astype(np.int64)
