"""Every sample once, over all ranks, in parts side by side, whatever the shards and the world."""

from __future__ import annotations

import pickle

import numpy as np

from t4p.data.sweep import Sweep, SweepNeeds


def test_ranks_have_equal_parts_that_together_are_all_samples_in_order_and_read_little_twice() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        counts = rng.integers(0, 40, rng.integers(1, 8))
        world_size = int(rng.integers(1, 9))
        block_bytes = int(rng.integers(1, 5000))
        sweep = pickle.loads(pickle.dumps(Sweep(counts, counts * 1000, block_bytes, world_size)))
        parts = [list(sweep.needs(rank)) for rank in range(world_size)]
        assert [len(part) for part in parts] == [sweep.num_samples(rank) for rank in range(world_size)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        found = [(need.shard_index, need.sample_index) for part in parts for need in part]
        assert found == [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]
        at_once = {(need.shard_index, need.start, need.stop) for part in parts for need in part}
        assert sum(stop - start for _, start, stop in at_once) == counts.sum(), "a sample in two of them"
        for part in parts:
            assert all(need.start <= need.sample_index < need.stop for need in part)
            first = int(rng.integers(0, len(part) + 1))
            assert list(sweep.needs(parts.index(part), first)) == part[first:]


def test_a_node_needs_what_its_ranks_look_at_side_by_side() -> None:
    sweep = Sweep(np.array([5, 6]), np.array([5000, 6000]), 2000, 4)  # parts of 2, 3, 3, 3
    needs = SweepNeeds(sweep, (0, 2))
    found = [[(need.shard_index, need.sample_index) for need in batch] for batch in needs.since(needs.first)]
    assert found == [[(0, 0), (1, 0)], [(0, 1), (1, 1)], [(1, 2)]]
    assert list(needs.since(1)) == list(needs.since(0))[1:]
