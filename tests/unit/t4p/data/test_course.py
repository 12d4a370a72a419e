import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from t4p.data.course import Course, CourseSettings, Pool, check_pools
from t4p.data.needs import TrainingNeeds
from t4p.data.ranks import Nodes

NUM_TOPOLOGIES = 600


def some_pool(rng: np.random.Generator, least: int = 1) -> Pool:
    while True:
        counts = rng.integers(0, rng.integers(2, 60), size=rng.integers(1, 12))
        if counts.sum() >= least:
            break
    voxels = rng.integers(1, 20_000, counts.sum()).astype(np.uint16) if rng.random() < 0.5 else None
    return Pool(counts, counts * int(rng.integers(1, 5000)), voxels, round(float(rng.uniform(0.1, 3)), 1))


def some_nodes(rng: np.random.Generator, world_size: int) -> Nodes:
    return Nodes(tuple(np.sort(rng.integers(0, rng.integers(1, 5), world_size)).tolist()))


def numbered(nodes: Nodes) -> Nodes:
    names = sorted(set(nodes.of_rank))
    return Nodes(tuple(names.index(name) for name in nodes.of_rank))


def some_topology(rng: np.random.Generator) -> tuple[list[Pool], CourseSettings]:
    pools = [some_pool(rng)] if rng.random() < 0.6 else [some_pool(rng, 50) for _ in range(rng.integers(2, 4))]
    batch = int(rng.integers(1, min(48, min(int(pool.samples_per_shard.sum()) for pool in pools)) + 1))
    divisors = [accum for accum in range(1, batch + 1) if batch % accum == 0]
    settings = CourseSettings(
        seed=int(rng.integers(2**63)),
        num_streams=int(rng.integers(1, 80)),
        shuffle_block=int(rng.integers(1, 60_000)),
        global_batch_size=batch,
        grad_accum_steps=int(rng.choice(divisors)),
        nodes=numbered(some_nodes(rng, int(rng.integers(1, batch + 1)))),
    )
    return pools, settings


def check_topology(pools: list[Pool], settings: CourseSettings, rng: np.random.Generator) -> None:
    course = Course(pools, settings)
    alone = Course(pools, replace(settings, nodes=Nodes((0,))))
    offsets = np.cumsum([0, *(len(pool.samples_per_shard) for pool in pools)])
    num_samples = sum(int(pool.samples_per_shard.sum()) for pool in pools)
    num_steps = min(num_samples // settings.global_batch_size + 1, max(2, 8 // settings.grad_accum_steps))
    seen: list[tuple[int, ...]] = []
    for step in range(num_steps):
        for micro_step in range(settings.grad_accum_steps):
            batch, of_one = course.micro_batch(step, micro_step), alone.micro_batch(step, micro_step)
            assert (batch.samples == of_one.samples).all(), "the batch does not depend on the ranks"
            assert (batch.epochs == of_one.epochs).all()
            counts = np.bincount(batch.ranks, minlength=settings.nodes.world_size)
            assert counts.max() - counts.min() <= 1
            covered = np.zeros(len(batch.ranks), int)
            for node in range(max(settings.nodes.of_rank) + 1):
                ranges = course.read_ranges(batch, node)
                ours = np.array(settings.nodes.of_rank)[batch.ranks] == node
                inside = (ranges[:, 0] <= batch.samples[:, 1]) & (batch.samples[:, 1] < ranges[:, 1])
                assert (inside == ours).all()
                covered += inside
            assert (covered == 1).all()
            pool_of = np.searchsorted(offsets, batch.samples[:, 0], side="right") - 1
            seen += zip(pool_of.tolist(), batch.epochs.tolist(), *batch.samples.T.tolist(), strict=True)
    assert len(set(seen)) == len(seen), "a sample twice in an epoch of its dataset"
    if len(pools) == 1:
        per_epoch = num_samples // settings.global_batch_size * settings.global_batch_size
        assert [epoch for _, epoch, _, _ in seen] == [k // per_epoch for k in range(len(seen))]
    # Whoever begins at a later step, in another process, comes to the same.
    step = int(rng.integers(num_steps))
    resumed, went_on = (
        pickle.loads(pickle.dumps(Course(pools, settings))).micro_batch(step, 0),
        course.micro_batch(step, 0),
    )
    assert (resumed.samples == went_on.samples).all()
    assert (resumed.ranks == went_on.ranks).all()


def test_600_topologies_each_sample_once_same_batches_for_every_world_equal_shares_and_resume_is_the_tail():
    rng = np.random.default_rng(20)
    for _ in range(NUM_TOPOLOGIES):
        check_topology(*some_topology(rng), rng)


def test_what_a_node_reads_at_once_is_read_by_it_alone_and_little_of_it_twice():
    counts = np.full(40, 500)
    pool = Pool(counts, counts * 124_000, np.random.default_rng(0).integers(3000, 30_000, 20_000).astype(np.uint16))
    course = Course([pool], CourseSettings(1, 64, 1 << 20, 128, 1, Nodes.equal(32, 8)))
    steps = 20_000 // 128
    trained, read = np.zeros(4, int), np.zeros(4, int)
    for node in range(4):
        of_node = [need for batch in TrainingNeeds(course, node, (0, steps)).since(0) for need in batch]
        trained[node] = len(of_node)
        at_once = {(need.shard_index, need.start, need.stop) for need in of_node}
        read[node] = sum(stop - start for _, start, stop in at_once)
        blocks = sorted(found for found in at_once if found[2] - found[1] > 1)
        for (shard, _, stop), (next_shard, start, _) in pairwise(blocks):
            assert shard != next_shard or stop <= start, "no sample in two parts"
    assert trained.sum() == steps * 128
    assert read.sum() <= 1.1 * trained.sum(), (read, trained)
    assert read.max() <= 1.1 * trained[read.argmax()]


def test_a_mixture_holds_its_shares_and_goes_through_each_dataset_again_and_again():
    small, large = (
        Pool(np.array([10, 5]), np.array([1000, 500]), weight=1),
        Pool(np.array([90]), np.array([9000]), weight=3),
    )
    course = Course([small, large], CourseSettings(0, 8, 1 << 20, 8, 1, Nodes((0, 0))))
    seen = [tuple(row) for step in range(30) for row in course.micro_batch(step, 0).samples.tolist()]
    from_small = [row for row in seen if row[0] < 2]
    assert len(from_small) == 60
    for epoch in range(4):
        assert sorted(from_small[15 * epoch : 15 * epoch + 15]) == [
            *((0, k) for k in range(10)),
            *((1, k) for k in range(5)),
        ]
    assert len({row for row in seen if row[0] == 2}) == 90


def test_equal_datasets_of_a_mixture_do_not_walk_in_step():
    pool = Pool(np.array([64, 64]), np.array([6400, 6400]))
    course = Course([pool, pool], CourseSettings(0, 8, 100, 8, 1, Nodes((0,))))
    rows = np.concatenate([course.micro_batch(step, 0).samples for step in range(16)])
    first, second = rows[rows[:, 0] < 2], rows[rows[:, 0] >= 2] - [2, 0]
    assert (first == second).all(axis=1).mean() < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad_accum_steps": 3}, r"global batch of 8 does not divide into 3"),
        ({"grad_accum_steps": 0}, r"into 0 equal micro-batches"),
        ({"nodes": Nodes.equal(9, 4)}, r"world size is 9 but the global batch has 8 samples"),
        ({"global_batch_size": 101}, r"100 samples, fewer than one global batch of 101"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    settings = CourseSettings(0, 64, 1 << 20, 8, 1, Nodes((0,)))
    with pytest.raises(ValueError, match=message):
        Course([Pool(np.array([100]), np.array([1000]))], replace(settings, **change))


def test_a_weight_that_asks_for_more_than_there_is_is_named_with_its_dataset():
    pools = [Pool(np.array([100]), np.array([1000]), weight=1), Pool(np.array([3]), np.array([30]), weight=1)]
    with pytest.raises(ValueError, match=r"takes 4 samples of a dataset that has 3 \(its weight is 1\)"):
        check_pools(pools, 8)


@pytest.mark.parametrize(("step", "micro_step"), [(-1, 0), (0, 2), (0, -1)])
def test_steps_that_are_none_are_named(step, micro_step):
    course = Course([Pool(np.array([100]), np.array([1000]))], CourseSettings(0, 64, 1 << 20, 8, 2, Nodes((0,))))
    with pytest.raises(ValueError, match=f"step is {step} and micro_step {micro_step}"):
        course.micro_batch(step, micro_step)
