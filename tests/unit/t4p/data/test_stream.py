"""From packed shards to batches: every frame once, the same for any number of workers, broken ones counted."""

import re
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from fault_proxy import FaultProxy
from slanted_plane import SAMPLES, write_seven_scenes

from shards.packing.pack import pack
from shards.stores.place import open_store
from shards.stores.store import StoreError
from t4p.data.batch import PairRecipe, PreparedRecipe
from t4p.data.course import Course
from t4p.data.fetch import Catalogue
from t4p.data.ranks import Nodes
from t4p.data.stream import StreamSettings, TrainingStream, ValidationStream
from t4p.errors import DataError

NUM_FRAMES = 13

STREAM = StreamSettings(
    num_workers=0,
    num_streams=4,
    shuffle_block=20_000,
    global_batch_size=4,
    grad_accum_steps=1,
    rank=0,
    nodes=Nodes((0,)),
    seed=5,
    max_skip_fraction=0.0,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    write_seven_scenes(folder / "raw", NUM_FRAMES)
    pack("seven-scenes", folder / "raw", str(folder / "shards"), shard_size_bytes=40_000)
    return folder / "shards"


def read(dataset, start, end, **changes):
    return list(
        TrainingStream(Catalogue([str(dataset)]), PairRecipe(SAMPLES), replace(STREAM, **changes)).batches(start, end)
    )


def assert_equal(one, other):
    assert one.keys == other.keys
    for name in ("images", "voxel_coords", "voxel_features", "voxel_of_pair_e", "cell_of_pair_e", "pixel_of_pair_d"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_an_epoch_reads_every_frame_at_most_once_and_leaves_out_the_remainder(dataset):
    assert len(Catalogue([str(dataset)]).samples_per_shard) > 2
    keys = [key for batch in read(dataset, 0, 3) for key in batch.keys]
    assert len(keys) == len(set(keys)) == 12
    next_epoch = [key for batch in read(dataset, 3, 6) for key in batch.keys]
    assert len(set(next_epoch)) == 12
    assert keys != next_epoch


def test_any_step_can_be_the_first(dataset):
    whole = read(dataset, 0, 7)
    for start in (1, 3, 5):
        for one, other in zip(whole[start:], read(dataset, start, 7), strict=True):
            assert_equal(one, other)


def test_loader_processes_change_nothing(dataset):
    for one, other in zip(read(dataset, 0, 4), read(dataset, 0, 4, num_workers=2), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_batch_whose_points_the_trainer_makes_is_that_of_the_loader(dataset, num_workers):
    settings = replace(STREAM, num_workers=num_workers)
    prepared = TrainingStream(Catalogue([str(dataset)]), PreparedRecipe(SAMPLES), settings).batches(0, 2)
    for one, other in zip(read(dataset, 0, 2), prepared, strict=True):
        assert_equal(one, other.to(torch.device("cpu")))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_the_batch_of_one(dataset, world_size):
    whole = read(dataset, 0, 3)
    ranks = [read(dataset, 0, 3, rank=rank, nodes=Nodes.equal(world_size, 2)) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        shares = [rank[step].keys for rank in ranks]
        assert sorted(key for share in shares for key in share) == sorted(batch.keys)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_micro_batches_are_parts_of_the_step(dataset):
    whole = read(dataset, 0, 3)
    parts = read(dataset, 0, 3, grad_accum_steps=2)
    assert len(parts) == 6
    for step, batch in enumerate(whole):
        assert parts[2 * step].keys + parts[2 * step + 1].keys == batch.keys


def test_two_datasets_are_read_as_one(dataset):
    catalogue = Catalogue([str(dataset), str(dataset)])
    assert catalogue.num_samples == 2 * NUM_FRAMES
    stream = TrainingStream(catalogue, PairRecipe(SAMPLES), STREAM)
    keys = [key for batch in stream.batches(0, catalogue.num_samples // 4) for key in batch.keys]
    assert len(keys) == 24
    assert max(keys.count(key) for key in keys) == 2


def test_a_fetcher_and_every_set_of_loaders_walk_courses_of_their_own(dataset, monkeypatch):
    """A course keeps where it is, and a fetcher's thread walks beside that of the loaders."""
    walked, micro_batch = [], Course.micro_batch

    def noted(course, step, micro_step):
        walked.append(course)
        return micro_batch(course, step, micro_step)

    @contextmanager
    def walks_first(ahead, catalogue, needs, *rest):
        assert len(list(needs.since(0))) == 2
        yield None

    monkeypatch.setattr(Course, "micro_batch", noted)
    monkeypatch.setattr("t4p.data.stream.shelf_of", walks_first)
    stream = TrainingStream(Catalogue([str(dataset)]), PairRecipe(SAMPLES), STREAM)
    for _ in range(2):
        assert len(list(stream.batches(0, 2))) == 2
    walkers = [walked[first : first + 2] for first in range(0, 8, 2)]
    assert all(one is other for one, other in walkers)
    assert len({id(one) for one, _ in walkers}) == 4


def test_validation_reads_every_frame_once_over_all_ranks(dataset):
    settings = replace(SAMPLES, augment=None, num_pairs_e=None, num_pairs_d=None)
    keys = []
    for rank in range(2):
        stream = ValidationStream(Catalogue([str(dataset)]), PairRecipe(settings), 0, rank, Nodes((0, 0)))
        batches = list(stream.batches())
        assert [batch.keys for batch in batches] == [batch.keys for batch in stream.batches()]
        assert all(len(batch.keys) == 1 for batch in batches)
        keys += [batch.keys[0] for batch in batches]
    assert len(keys) == len(set(keys)) == NUM_FRAMES


@pytest.fixture
def damaged(dataset, tmp_path):
    """A copy in which one byte of one sample is flipped."""
    copy = tmp_path / "damaged"
    copy.mkdir()
    for path in dataset.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    victim = copy / "shard-000001.tar"
    content = bytearray(victim.read_bytes())
    content[1000] ^= 1
    victim.write_bytes(content)
    return copy


def test_a_broken_sample_stops_the_run_and_is_named(damaged):
    with pytest.raises(DataError) as caught:
        read(damaged, 0, 3)
    message = str(caught.value)
    assert "shard-000001.tar" in message
    assert "crc32c" in message
    assert "data.max_skip_fraction is 0" in message
    assert "t4p shards verify" in message


def test_broken_samples_are_skipped_up_to_the_allowed_share_and_named(damaged, capsys):
    stream = TrainingStream(Catalogue([str(damaged)]), PairRecipe(SAMPLES), replace(STREAM, max_skip_fraction=0.003))
    batches = list(stream.batches(0, 9))
    sizes = [len(batch.keys) for batch in batches]
    assert sum(sizes) == 9 * 4 - stream.num_skipped
    assert 1 <= stream.num_skipped <= 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == stream.num_skipped
    assert all(re.match(r"left out: sample \S+/frame-000002: .*crc32c is", line) for line in lines), lines


def test_validation_drops_nothing(damaged):
    stream = ValidationStream(Catalogue([str(damaged)]), PairRecipe(SAMPLES), 0)
    with pytest.raises(DataError, match=r"frame-000002: crc32c is"):
        list(stream.batches())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 14}, "the dataset has 13 samples, fewer than one global batch of 14"),
        ({"nodes": Nodes.equal(5, 5)}, "the world size is 5 but the global batch has 4 samples"),
    ],
)
def test_a_world_or_batch_that_cannot_work_is_refused_before_anything_is_read(dataset, changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingStream(Catalogue([str(dataset)]), PairRecipe(SAMPLES), replace(STREAM, **changes))


def test_a_shard_that_is_gone_is_a_broken_sample_but_a_storage_that_fails_ends_the_run(dataset, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in dataset.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "shard-000000.tar").unlink()
    stream = TrainingStream(Catalogue([str(copy)]), PairRecipe(SAMPLES), replace(STREAM, max_skip_fraction=0.9))
    list(stream.batches(0, 3))
    assert stream.num_skipped > 0
    (copy / "shard-000000.tar").mkdir()  # reading a folder is an error of the storage, not of a sample
    with pytest.raises(StoreError, match=r"shard-000000\.tar"):
        list(TrainingStream(Catalogue([str(copy)]), PairRecipe(SAMPLES), replace(STREAM, num_workers=1)).batches(0, 3))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_storage_that_fails_now_and_then_is_counted_and_leaves_nothing_out(
    dataset, s3_server, s3_bucket, monkeypatch, num_workers
):
    for path in dataset.iterdir():
        open_store(s3_bucket).write(path.name, path)
    settings = replace(STREAM, max_skip_fraction=0.5, num_workers=num_workers)
    wanted = [
        batch.keys for batch in TrainingStream(Catalogue([str(dataset)]), PairRecipe(SAMPLES), STREAM).batches(0, 3)
    ]
    with FaultProxy(s3_server.url, 0.3, 5, ["404", "altered", "503"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        stream = TrainingStream(Catalogue([s3_bucket]), PairRecipe(SAMPLES), settings)
        assert [batch.keys for batch in stream.batches(0, 3)] == wanted
    assert stream.num_skipped == 0
    assert stream.storage_faults.total() == proxy.faults.total()
    assert {"404 of what is there", "altered bytes", "503"} >= set(stream.storage_faults)
