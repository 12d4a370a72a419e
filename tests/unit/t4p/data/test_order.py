import pickle
import time
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

from t4p.data import order
from t4p.data.order import EpochOrder, epoch_and_step, rank_positions, steps_per_epoch

NUM_COMBINATIONS = 600


@dataclass(frozen=True)
class Combination:
    samples_per_shard: np.ndarray
    seed: int
    epoch: int
    num_streams: int
    shuffle_block: int
    global_batch_size: int
    grad_accum_steps: int
    world_size: int
    start_step: int

    def order(self) -> EpochOrder:
        return EpochOrder(self.samples_per_shard, self.seed, self.epoch, self.num_streams, self.shuffle_block)


def combinations() -> list[Combination]:
    rng = np.random.default_rng(20)
    result = []
    while len(result) < NUM_COMBINATIONS:
        samples_per_shard = rng.integers(0, rng.integers(2, 60), size=rng.integers(1, 12))
        num_samples = int(samples_per_shard.sum())
        if num_samples == 0:
            continue
        global_batch_size = int(rng.integers(1, min(num_samples, 48) + 1))
        divisors = [a for a in range(1, global_batch_size + 1) if global_batch_size % a == 0]
        result.append(
            Combination(
                samples_per_shard=samples_per_shard,
                seed=int(rng.integers(2**63)),
                epoch=int(rng.integers(1000)),
                num_streams=int(rng.integers(1, 80)),
                shuffle_block=int(rng.integers(1, 40)),
                global_batch_size=global_batch_size,
                grad_accum_steps=int(rng.choice(divisors)),
                world_size=int(rng.integers(1, global_batch_size + 1)),
                start_step=int(rng.integers(num_samples // global_batch_size)),
            )
        )
    return result


def rows_as_tuples(samples: np.ndarray) -> list[tuple[int, int]]:
    return [(int(shard), int(sample)) for shard, sample in samples]


def check_combination(case: Combination) -> None:
    epoch_order = case.order()
    num_samples = epoch_order.num_samples
    batch, accum, world = case.global_batch_size, case.grad_accum_steps, case.world_size
    everything = rows_as_tuples(epoch_order.samples(0, num_samples))
    dataset = {(s, i) for s, n in enumerate(case.samples_per_shard) for i in range(n)}
    assert len(everything) == num_samples, case
    assert set(everything) == dataset, case

    seen: list[int] = []
    for step in range(steps_per_epoch(num_samples, batch)):
        shares_of_step = np.zeros(world, dtype=int)
        for micro_step in range(accum):
            alone = rank_positions(step, batch, accum, micro_step, 0, 1)
            shares = [rank_positions(step, batch, accum, micro_step, rank, world) for rank in range(world)]
            together = np.concatenate(shares)
            assert len(together) == len(alone), case
            assert set(together.tolist()) == set(alone.tolist()), case
            assert all((np.diff(share) > 0).all() for share in shares), case
            sizes = np.array([len(share) for share in shares])
            assert sizes.max() - sizes.min() <= 1, case
            shares_of_step += sizes
            seen += alone.tolist()
        assert shares_of_step.max() - shares_of_step.min() <= 1, case
    assert seen == list(range(num_samples // batch * batch)), case

    # A process that starts at a later step, on this rank alone, sees the tail of what it would have seen.
    resumed = case.order()
    for step in range(case.start_step, min(case.start_step + 3, num_samples // batch)):
        positions = rank_positions(step, batch, accum, accum - 1, world - 1, world)
        expected = [everything[p] for p in positions]
        assert rows_as_tuples(resumed.samples_at(positions)) == expected, case
    start = case.start_step * batch
    assert rows_as_tuples(case.order().samples(start, num_samples)) == everything[start:], case


def test_each_position_once_equal_shares_same_batches_for_every_world_size_and_resume_is_the_tail():
    for case in combinations():
        check_combination(case)


def test_the_property_check_rejects_a_rank_rule_that_repeats_positions(monkeypatch):
    right = order.rank_positions

    def off_by_one(step, batch, accum, micro_step, rank, world_size):
        return right(step, batch, accum, micro_step, min(rank, max(world_size - 2, 0)), world_size)

    monkeypatch.setitem(globals(), "rank_positions", off_by_one)
    case = next(case for case in combinations() if case.world_size > 2)
    with pytest.raises(AssertionError):
        check_combination(case)


def test_position_p_is_a_sample_of_stream_p_mod_num_streams():
    # With blocks of one sample a stream is a contiguous range of the ring: positions p and p + C are neighbours.
    epoch_order = EpochOrder(np.array([1000]), seed=3, epoch=5, num_streams=7, shuffle_block=1)
    samples = epoch_order.samples(0, 1000)[:, 1]
    for position in range(1000 - 7):
        assert samples[position + 7] == (samples[position] + 1) % 1000


def test_shuffling_stays_within_a_block_of_the_stream():
    rows = {}
    for block in (1, 50):
        samples = EpochOrder(np.array([1000]), seed=3, epoch=5, num_streams=4, shuffle_block=block).samples(0, 1000)
        rows[block] = samples[:, 1].reshape(250, 4)
    assert (rows[1] != rows[50]).mean() > 0.9
    for stream in range(4):
        for start in range(0, 250, 50):
            part = slice(start, start + 50)
            assert set(rows[1][part, stream]) == set(rows[50][part, stream])


def test_golden_order():
    epoch_order = EpochOrder(np.array([7, 0, 5, 8]), seed=1, epoch=2, num_streams=4, shuffle_block=3)
    assert rows_as_tuples(epoch_order.samples(0, 20)) == [
        *[(0, 6), (0, 1), (2, 4), (3, 4), (0, 5), (0, 2), (2, 3), (3, 3), (2, 0), (0, 0)],
        *[(3, 0), (3, 5), (2, 1), (0, 4), (3, 1), (3, 6), (2, 2), (0, 3), (3, 2), (3, 7)],
    ]


def test_golden_order_of_a_large_dataset():
    epoch_order = EpochOrder(np.full(5000, 1117), seed=2**64 - 1, epoch=11)
    golden = [(4971, 404), (2187, 801), (2648, 327), (3774, 196)]
    assert rows_as_tuples(epoch_order.samples(4_000_000, 4_000_004)) == golden


@pytest.mark.parametrize(("num_samples", "batch"), [(100, 16), (100, 8), (65, 16), (40, 8), (300, 32)])
def test_batches_of_a_small_dataset_in_one_shard_differ_strongly_between_epochs(num_samples, batch):
    epochs = [EpochOrder(np.array([num_samples]), seed=0, epoch=epoch).samples(0, num_samples) for epoch in range(40)]
    for first in range(0, num_samples - batch + 1, batch):
        batches = [set(samples[first : first + batch, 1].tolist()) for samples in epochs]
        overlap = np.mean([len(a & b) for a, b in pairwise(batches)])
        by_chance = batch * batch / num_samples
        assert overlap < 1.5 * by_chance + 0.5, (first, overlap, by_chance)


def test_left_out_samples_differ_between_epochs_and_every_sample_is_left_out_about_equally_often():
    left_out = np.zeros(100, dtype=int)
    for epoch in range(500):
        samples = EpochOrder(np.array([60, 40]), seed=9, epoch=epoch).samples(96, 100)
        left_out[samples[:, 0] * 60 + samples[:, 1]] += 1
    # 2000 draws over 100 samples: 20 each, standard deviation 4.5.
    assert left_out.min() >= 3
    assert left_out.max() <= 42


def test_seeds_and_epochs_give_unrelated_orders():
    def rows(seed: int, epoch: int) -> np.ndarray:
        return EpochOrder(np.full(50, 20), seed, epoch).samples(0, 1000) @ [20, 1]

    for other in (rows(1, 0), rows(0, 1), rows(1, 1)):
        assert abs(np.corrcoef(rows(0, 0), other)[0, 1]) < 0.15
        assert (rows(0, 0) == other).mean() < 0.02


def test_a_step_costs_the_same_wherever_it_is_and_100_million_samples_resume_in_well_under_a_second(monkeypatch):
    rng = np.random.default_rng(0)
    samples_per_shard = rng.multinomial(100_000_000, np.full(250_000, 1 / 250_000))
    words_drawn = []
    draw = order._EpochWords.draw

    def counting_draw(self, count, *args):
        words_drawn.append(count)
        return draw(self, count, *args)

    monkeypatch.setattr(order._EpochWords, "draw", counting_draw)
    costs = []
    for step in (0, 10_000, 24_413):
        words_drawn.clear()
        started = time.process_time()
        epoch, step_in_epoch = epoch_and_step(step, 100_000_000, 4096)
        epoch_order = EpochOrder(samples_per_shard, seed=4, epoch=epoch)
        rows = epoch_order.samples(step_in_epoch * 4096, step_in_epoch * 4096 + 4096)
        seconds = time.process_time() - started
        costs.append(sum(words_drawn))
        assert len(np.unique(rows, axis=0)) == 4096
        assert seconds < 0.8, (step, seconds)
        # One block per stream, two where the step straddles a boundary.
        assert sum(words_drawn) <= 250_000 + 1 + 64 + 2 * 64 * 2048
    assert max(costs) - min(costs) <= 64 * 2048

    words_drawn.clear()
    epoch_order.samples(step_in_epoch * 4096, step_in_epoch * 4096 + 4096)
    assert not words_drawn  # the blocks in use are kept


def test_only_the_streams_of_a_rank_are_touched_when_the_world_size_divides_the_streams():
    epoch_order = EpochOrder(np.full(100, 1000), seed=0, epoch=0, num_streams=8)
    epoch_order.samples_at(rank_positions(3, 512, 1, 0, rank=1, world_size=4))
    assert sorted(epoch_order._last_block) == [1, 5]


def test_orders_pickle_and_read_on_the_same():
    epoch_order = EpochOrder(np.full(10, 100), seed=0, epoch=0)
    epoch_order.samples(0, 10)
    copy = pickle.loads(pickle.dumps(epoch_order))
    np.testing.assert_array_equal(copy.samples(300, 400), epoch_order.samples(300, 400))


def test_reading_out_of_order_equals_reading_in_order():
    rng = np.random.default_rng(1)
    positions = rng.permutation(5000)
    arguments = (np.full(10, 500), 7, 3, 16, 100)
    np.testing.assert_array_equal(
        EpochOrder(*arguments).samples_at(positions), EpochOrder(*arguments).samples(0, 5000)[positions]
    )
    assert EpochOrder(*arguments).samples_at(np.array([], dtype=np.int64)).shape == (0, 2)


def test_epoch_and_step_follow_from_the_global_step():
    assert steps_per_epoch(100, 16) == 6
    assert epoch_and_step(0, 100, 16) == (0, 0)
    assert epoch_and_step(5, 100, 16) == (0, 5)
    assert epoch_and_step(20, 100, 16) == (3, 2)


def test_fewer_samples_than_a_batch_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"100 samples.*global batch of 128.*to 100 or less"):
        steps_per_epoch(100, 128)
    with pytest.raises(ValueError, match="100 samples"):
        epoch_and_step(3, 100, 128)


def test_a_world_size_above_the_global_batch_is_an_error_that_names_both():
    with pytest.raises(ValueError, match=r"world size is 9 but the global batch has 8 samples"):
        rank_positions(0, 8, 1, 0, rank=0, world_size=9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_positions(0, 8, 3, 0, 0, 1), r"global batch of 8 does not divide into 3"),
        (lambda: rank_positions(0, 8, 0, 0, 0, 1), r"into 0 equal micro-batches"),
        (lambda: rank_positions(0, 8, 2, 2, 0, 1), r"micro_step is 2; it must be in \[0, 2\)"),
        (lambda: rank_positions(0, 8, 2, 0, 4, 4), r"rank is 4; it must be in \[0, 4\)"),
        (lambda: rank_positions(-1, 8, 2, 0, 0, 4), r"step_in_epoch is -1"),
        (lambda: epoch_and_step(-1, 8, 2), r"step is -1"),
        (lambda: steps_per_epoch(8, 0), r"global_batch_size is 0"),
        (lambda: EpochOrder(np.array([0, 0]), 0, 0), r"2 shards hold no sample"),
        (lambda: EpochOrder(np.array([3, -1]), 0, 0), r"without negative entries"),
        (lambda: EpochOrder(np.array([3.0]), 0, 0), r"float64 of shape \(1,\)"),
        (lambda: EpochOrder(np.array([3]), -1, 0), r"got seed -1"),
        (lambda: EpochOrder(np.array([3]), 0, 0, num_streams=0), r"got 0 streams"),
        (lambda: EpochOrder(np.array([3]), 0, 0).samples(2, 4), r"\[2, 4\) leave the epoch's 3"),
        (lambda: EpochOrder(np.array([3]), 0, 0).samples_at(np.array([3])), r"3 to 3 leave the epoch's 3"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
