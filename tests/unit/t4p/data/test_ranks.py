import numpy as np
import pytest

from t4p.data.ranks import MOST_EXCHANGED, Nodes, ranks_of_batch, slowest_share


def some_nodes(rng: np.random.Generator, num_nodes: int) -> Nodes:
    ranks = rng.integers(1, 9, num_nodes)
    return Nodes(tuple(np.repeat(np.arange(num_nodes), ranks).tolist()))


def test_every_sample_has_one_rank_shares_are_equal_and_few_samples_leave_their_node():
    rng = np.random.default_rng(3)
    for case in range(400):
        nodes = some_nodes(rng, int(rng.integers(1, 6)))
        size = int(rng.integers(1, 120))
        first = int(rng.integers(1000))
        streams = np.arange(first, first + size) if case % 2 else rng.integers(0, 200, size)
        voxels = None if case % 3 == 0 else rng.integers(1, 30_000, size)
        ranks = ranks_of_batch(streams, voxels, nodes)
        counts = np.bincount(ranks, minlength=nodes.world_size)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1, (nodes, streams)
        if case % 2:  # streams side by side are spread evenly as they are: only balance moves any
            moved = (nodes.of_stream(streams) != np.array(nodes.of_rank)[ranks]).mean()
            assert moved <= (0 if voxels is None else MOST_EXCHANGED)
        again = ranks_of_batch(streams.copy(), None if voxels is None else voxels.copy(), nodes)
        assert (ranks == again).all()


def test_without_counts_samples_stay_with_the_ranks_whose_streams_they_are():
    streams = np.arange(48)
    assert (ranks_of_batch(streams, None, Nodes.equal(12, 4)) == streams % 12).all()


@pytest.mark.parametrize(("world_size", "bound"), [(64, 1.06), (1024, 1.15)])
def test_the_slowest_rank_of_a_large_world_has_little_more_than_the_mean(world_size, bound):
    """Frames of two kinds of scene as two real recordings have them: many voxels that vary little, few that vary much.

    benchmarks/LOG.md has the simulation on counts of real frames.
    """
    rng = np.random.default_rng(1)
    nodes = Nodes.equal(world_size, 8)
    before, after = [], []
    for _ in range(12):
        size = 4 * world_size
        steady = rng.normal(10_300, 2_000, size).clip(5_000, 14_500)
        wide = rng.gamma(2.2, 3_700, size).clip(2_600, 20_500)
        voxels = (np.where(rng.random(size) < 0.7, steady, wide) * np.exp(0.25 * rng.standard_normal(size))).astype(int)
        streams = np.arange(size)
        before.append(slowest_share(ranks_of_batch(streams, None, nodes), voxels, world_size))
        after.append(slowest_share(ranks_of_batch(streams, voxels, nodes), voxels, world_size))
    assert np.mean(before) > 1.4
    assert np.mean(after) <= bound, (np.mean(before), np.mean(after))


def test_one_sample_a_rank_or_fewer_leaves_nothing_to_balance():
    voxels = np.array([9000, 100, 100, 5000])
    assert sorted(ranks_of_batch(np.arange(4), voxels, Nodes.equal(4, 2)).tolist()) == [0, 1, 2, 3]
    assert len(set(ranks_of_batch(np.arange(3), voxels[:3], Nodes.equal(8, 4)).tolist())) == 3


def test_golden_assignment():
    voxels = np.array([100, 900, 250, 300, 800, 120, 500, 610])
    assert ranks_of_batch(np.arange(8), voxels, Nodes.equal(4, 2)).tolist() == [0, 0, 2, 3, 1, 1, 3, 2]
