import pickle
import time
from itertools import pairwise

import numpy as np
import pytest

from t4p.data import order
from t4p.data.order import (
    IN_FLIGHT_BYTES,
    EpochOrder,
    Piece,
    block_bytes_of,
    steps_per_epoch,
    streams_of_batch,
)

SAMPLE_BYTES = 100


def make(samples_per_shard, seed=0, epoch=0, num_streams=64, block=2048, **more) -> EpochOrder:
    """An order over samples of SAMPLE_BYTES bytes, in blocks of `block` of them."""
    counts = np.asarray(samples_per_shard)
    return EpochOrder(counts, counts * SAMPLE_BYTES, seed, epoch, num_streams, block * SAMPLE_BYTES, **more)


def rows_as_tuples(samples: np.ndarray) -> list[tuple[int, int]]:
    return [(int(shard), int(sample)) for shard, sample in samples]


def test_every_sample_once_whatever_the_streams_and_blocks_and_reading_may_begin_anywhere():
    rng = np.random.default_rng(20)
    for _ in range(300):
        counts = rng.integers(0, rng.integers(2, 60), size=rng.integers(1, 12))
        if not counts.sum():
            continue
        arguments = (counts, counts * rng.integers(1, 500), int(rng.integers(2**63)), int(rng.integers(1000)))
        arguments = (*arguments, int(rng.integers(1, 80)), int(rng.integers(1, 4000)))
        everything = rows_as_tuples(EpochOrder(*arguments).samples(0, int(counts.sum())))
        assert sorted(everything) == [(s, i) for s, n in enumerate(counts) for i in range(n)], arguments
        start = int(rng.integers(len(everything)))
        tail = EpochOrder(*arguments).samples(start, len(everything))
        assert rows_as_tuples(tail) == everything[start:], arguments
        # What the streams hold of blocks is all of them, each sample in the piece of the stream that its position has.
        epoch_order = EpochOrder(*arguments)
        places = epoch_order.places_at(np.arange(len(everything)))
        assert (places.streams == np.arange(len(everything)) % arguments[4]).all()
        for block in np.unique(places.blocks).tolist():
            shard, first, last = epoch_order.bounds(block)
            pieces = epoch_order.pieces(block)
            assert [first, *(piece.stop for piece in pieces)] == [*(piece.start for piece in pieces), last]
            for (of, sample), stream in zip(
                places.samples[places.blocks == block], places.streams[places.blocks == block], strict=True
            ):
                assert of == shard
                assert any(piece.stream == stream and piece.start <= sample < piece.stop for piece in pieces)


def test_shuffling_stays_within_a_block_and_blocks_come_from_all_over_the_dataset():
    epoch_order = make([100] * 50, seed=3, epoch=5, num_streams=4, block=20)
    samples = epoch_order.samples(0, 5000)
    numbers = (samples[:, 0] * 100 + samples[:, 1]).reshape(1250, 4)
    for stream in range(4):
        blocks = numbers[:, stream] // 20
        assert (np.diff(blocks) != 0).sum() <= 1250 / 20 + 3, "a block is gone through before the next begins"
        in_order = (np.diff(numbers[:, stream]) == 1).mean()
        assert in_order < 0.15, "shuffled"
    assert abs(np.corrcoef(samples[:-4, 0], np.arange(4996))[0, 1]) < 0.2


def test_a_block_is_about_as_many_bytes_as_it_was_asked_to_be():
    sizes = np.array([3, 10, 64, 200]) * (1 << 20)
    epoch_order = EpochOrder(np.array([30, 100, 640, 2000]), sizes, 0, 0, num_streams=1, block_bytes=8 << 20)
    places = epoch_order.places_at(np.arange(2770))
    blocks = [epoch_order.bounds(block) for block in np.unique(places.blocks).tolist()]
    per_shard = [sum(stop - start for shard, start, stop in blocks if shard == s) for s in range(4)]
    assert per_shard == [30, 100, 640, 2000]
    in_bytes = [(stop - start) * sizes[shard] / [30, 100, 640, 2000][shard] for shard, start, stop in blocks]
    assert np.median(in_bytes) == pytest.approx(8 << 20, rel=0.05)
    assert max(in_bytes) < 12 << 20


def test_streams_are_a_multiple_of_the_batch_and_what_is_open_is_bounded():
    assert [streams_of_batch(64, batch) for batch in (1, 4, 24, 48, 64, 65, 100, 4096)] == [
        *(64, 64, 72, 96),
        *(64, 65, 100, 4096),
    ]
    for batch in (1, 64, 1000, 4096, 32768):
        streams = streams_of_batch(64, batch)
        assert streams * block_bytes_of(8 << 20, streams) <= IN_FLIGHT_BYTES
    assert block_bytes_of(8 << 20, 64) == 8 << 20


@pytest.mark.parametrize("batch", [32, 256, 1024, 4096])
def test_a_batch_touches_as_many_shards_as_one_drawn_at_random(batch):
    streams = streams_of_batch(64, batch)
    counts = np.full(500, 2000)
    epoch_order = EpochOrder(counts, counts * 124_000, 1, 2, streams, block_bytes_of(8 << 20, streams))
    touched = [len(np.unique(epoch_order.samples(i * batch, (i + 1) * batch)[:, 0])) for i in range(5, 60)]
    by_chance = 500 * (1 - (1 - 1 / 500) ** batch)
    assert np.mean(touched) >= 0.94 * by_chance


def test_golden_order():
    epoch_order = make([7, 0, 5, 8], seed=1, epoch=2, num_streams=4, block=3)
    assert rows_as_tuples(epoch_order.samples(0, 20)) == [
        *[(3, 6), (3, 1), (0, 5), (2, 0), (3, 5), (3, 0), (0, 6), (2, 1), (3, 7), (3, 3)],
        *[(0, 1), (2, 3), (0, 4), (3, 4), (0, 2), (2, 4), (0, 3), (3, 2), (0, 0), (2, 2)],
    ]
    assert epoch_order.pieces(0) == [Piece(stream=0, start=5, stop=8)]


def test_golden_order_of_a_large_dataset():
    epoch_order = make(np.full(5000, 1117), seed=2**64 - 1, epoch=11, block=64, dataset_index=1)
    assert rows_as_tuples(epoch_order.samples(4_000_000, 4_000_004)) == [
        (1013, 829),
        (1366, 1029),
        (4301, 263),
        (3960, 641),
    ]


@pytest.mark.parametrize(("num_samples", "batch"), [(100, 16), (100, 8), (65, 16), (40, 8), (300, 32)])
def test_batches_of_a_small_dataset_in_one_shard_differ_strongly_between_epochs(num_samples, batch):
    epochs = [
        make([num_samples], epoch=epoch, num_streams=streams_of_batch(64, batch)).samples(0, num_samples)
        for epoch in range(40)
    ]
    for first in range(0, num_samples - batch + 1, batch):
        batches = [set(samples[first : first + batch, 1].tolist()) for samples in epochs]
        overlap = np.mean([len(a & b) for a, b in pairwise(batches)])
        by_chance = batch * batch / num_samples
        assert overlap < 1.5 * by_chance + 0.5, (first, overlap, by_chance)


def test_left_out_samples_differ_between_epochs_and_every_sample_is_left_out_about_equally_often():
    left_out = np.zeros(100, dtype=int)
    for epoch in range(500):
        samples = make([60, 40], seed=9, epoch=epoch).samples(96, 100)
        left_out[samples[:, 0] * 60 + samples[:, 1]] += 1
    # 2000 draws over 100 samples: 20 each, standard deviation 4.5.
    assert left_out.min() >= 3
    assert left_out.max() <= 42


def test_seeds_epochs_and_datasets_give_unrelated_orders():
    def rows(seed: int, epoch: int, dataset: int = 0) -> np.ndarray:
        return make([20] * 50, seed, epoch, dataset_index=dataset).samples(0, 1000) @ [20, 1]

    for other in (rows(1, 0), rows(0, 1), rows(1, 1), rows(0, 0, 1)):
        assert abs(np.corrcoef(rows(0, 0), other)[0, 1]) < 0.15
        assert (rows(0, 0) == other).mean() < 0.02


def test_a_step_costs_the_same_wherever_it_is_and_a_hundred_million_samples_resume_in_seconds(monkeypatch):
    counts = np.full(50_000, 2_000)
    words_drawn = []
    draw = order._EpochWords.draw

    def counting_draw(self, count, *args):
        words_drawn.append(count)
        return draw(self, count, *args)

    monkeypatch.setattr(order._EpochWords, "draw", counting_draw)
    streams = streams_of_batch(64, 1024)
    costs = []
    for step in (0, 97_000):
        words_drawn.clear()
        started = time.process_time()
        epoch, step_in_epoch = divmod(step, steps_per_epoch(100_000_000, 1024))
        epoch_order = EpochOrder(counts, counts * 124_000, 4, epoch, streams, block_bytes_of(8 << 20, streams))
        rows = epoch_order.samples(step_in_epoch * 1024, step_in_epoch * 1024 + 1024)
        seconds = time.process_time() - started
        costs.append(sum(words_drawn))
        assert len(np.unique(rows, axis=0)) == 1024
        assert seconds < 3, (step, seconds)  # 0.6 on two busy cores: once an epoch
    assert max(costs) - min(costs) <= 1024 * 70, "a window per stream, whatever came before"

    words_drawn.clear()
    started = time.process_time()
    epoch_order.samples(step_in_epoch * 1024, step_in_epoch * 1024 + 1024)
    assert not words_drawn  # the windows in use are kept
    assert time.process_time() - started < 0.1


def test_orders_pickle_and_read_on_the_same():
    epoch_order = make([100] * 10)
    epoch_order.samples(0, 10)
    copy = pickle.loads(pickle.dumps(epoch_order))
    np.testing.assert_array_equal(copy.samples(300, 400), epoch_order.samples(300, 400))


def test_reading_out_of_order_equals_reading_in_order():
    positions = np.random.default_rng(1).permutation(5000)
    arguments = {"samples_per_shard": [500] * 10, "seed": 7, "epoch": 3, "num_streams": 16, "block": 100}
    np.testing.assert_array_equal(
        make(**arguments).places_at(positions).samples, make(**arguments).samples(0, 5000)[positions]
    )
    assert make(**arguments).places_at(np.array([], dtype=np.int64)).samples.shape == (0, 2)


def test_fewer_samples_than_a_batch_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"100 samples.*global batch of 128.*to 100 or less"):
        steps_per_epoch(100, 128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steps_per_epoch(8, 0), r"global_batch_size is 0"),
        (lambda: make([0, 0]), r"2 shards hold no sample"),
        (lambda: make([3, -1]), r"without negative entries"),
        (lambda: make([3.0]), r"float64 of shape \(1,\)"),
        (lambda: EpochOrder(np.array([3]), np.array([3, 4]), 0, 0, 1, 1), r"bytes_per_shard has shape \(2,\)"),
        (lambda: make([3], -1), r"got seed -1"),
        (lambda: make([3], num_streams=0), r"got 0 streams"),
        (lambda: make([3], block=0), r"a block of 0 bytes"),
        (lambda: make([3]).samples(2, 4), r"\[2, 4\) leave the epoch's 3"),
        (lambda: make([3]).places_at(np.array([3])), r"3 to 3 leave the epoch's 3"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
