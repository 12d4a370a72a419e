"""`t4p.stream`: the order of a training, gone on with from anywhere, shared by any number of ranks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.stores.place import open_store
from t4p.data.course import Course, CourseSettings
from t4p.data.decode import decode_frame
from t4p.data.fetch import Catalogue
from t4p.data.point_stream import PointBatch, PointStream, stream
from t4p.data.ranks import Nodes
from t4p.data.transforms import lift_frame

OLDER = Path(__file__).resolve().parents[3] / "data" / "older"
NUM_FRAMES, BATCH = 13, 4
ORDER = {"batch_size": BATCH, "seed": 5, "streams": 3, "shuffle_block": 30_000}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_scene) -> str:
    folder = tmp_path_factory.mktemp("points")
    make_scene(folder / "raw", NUM_FRAMES)
    pack("seven-scenes", folder / "raw", str(folder / "shards"), shard_size_bytes=40_000)
    return str(folder / "shards")


def make(dataset: str, **changes) -> PointStream:
    return stream(dataset, **{**ORDER, "pixel_stride": 6, **changes})


def epochs(points: PointStream, count: int) -> list[PointBatch]:
    return [batch for _ in range(count) for batch in points]


def same(left: PointBatch, right: PointBatch) -> bool:
    tensors = ("points", "colors", "offsets")
    return left.keys == right.keys and all(torch.equal(getattr(left, n), getattr(right, n)) for n in tensors)


def test_batches_are_those_of_the_order_of_a_training(dataset: str) -> None:
    catalogue = Catalogue([dataset])
    course = Course(catalogue.pools, CourseSettings(5, 3, 30_000, BATCH, 1, Nodes.equal(3, 1)))
    for rank in range(3):
        found = epochs(make(dataset, rank=rank, world_size=3), 2)
        assert len(found) == 2 * (NUM_FRAMES // BATCH)
        for number, batch in enumerate(found):
            wanted = course.micro_batch(number, 0)
            mine = wanted.samples[wanted.ranks == rank].tolist()
            assert batch.keys == tuple(catalogue.key(shard, sample) for shard, sample in mine)


def test_ranks_share_every_batch_without_overlap(dataset: str) -> None:
    alone = epochs(make(dataset), 1)
    shared = [epochs(make(dataset, rank=rank, world_size=4), 1) for rank in range(4)]
    for batch, *parts in zip(alone, *shared, strict=True):
        assert sorted(key for part in parts for key in part.keys) == sorted(batch.keys)
    assert len({key for batch in alone for key in batch.keys}) == len(alone) * BATCH


def test_stopped_anywhere_and_loaded_it_goes_on_with_equal_batches(dataset: str) -> None:
    whole = epochs(make(dataset), 3)
    assert len({batch.keys for batch in whole}) == len(whole)
    for stop in range(len(whole)):
        begun = make(dataset)
        taken = []
        while len(taken) < stop:
            for batch in begun:
                taken.append(batch)
                if len(taken) == stop:
                    break
        state = json.loads(json.dumps(begun.state_dict()))
        resumed = make(dataset)
        resumed.load_state_dict(state)
        rest = []
        while len(taken) + len(rest) < len(whole):
            rest += list(resumed)
        assert all(same(left, right) for left, right in zip([*taken, *rest], whole, strict=True)), stop


def test_a_loop_broken_off_goes_on_in_its_epoch(dataset: str) -> None:
    points = make(dataset)
    first = next(iter(points))
    rest = list(points)
    assert len(points) == 1 + len(rest) == 3
    assert all(same(left, right) for left, right in zip([first, *rest], epochs(make(dataset), 1), strict=True))


def test_a_state_goes_on_on_another_number_of_ranks(dataset: str) -> None:
    alone = make(dataset)
    next(iter(alone))
    ranks = [make(dataset, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict())
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert sorted(key for part in parts for key in part.keys) == sorted(batch.keys)


def test_the_points_of_a_frame_are_those_that_training_lifts(dataset: str) -> None:
    reader = DatasetReader(dataset)
    for batch in make(dataset, pixel_stride=3, max_depth=2.5, frame="world"):
        assert batch.points.dtype == batch.colors.dtype == torch.float32
        assert batch.offsets.dtype == torch.int64
        assert batch.offsets.tolist()[0] == 0
        for index, key in enumerate(batch.keys):
            lifted = lift_frame(decode_frame(reader.read_frame(*reader.find(key))), 3, 2.5, True)
            rows = slice(*batch.offsets[index : index + 2].tolist())
            np.testing.assert_array_equal(batch.points[rows].numpy(), lifted.points.float())
            np.testing.assert_array_equal(batch.colors[rows].numpy(), lifted.colors)
        assert len(batch.points) == len(batch.colors) == batch.offsets[-1] > 0


def test_a_scene_comes_as_it_is_stored() -> None:
    (batch,) = stream([str(OLDER / "scenes")], batch_size=1)
    scene = DatasetReader(str(OLDER / "scenes")).read_scene(0, 0)
    np.testing.assert_array_equal(batch.points.numpy(), scene.points)
    np.testing.assert_array_equal((batch.colors.numpy() * 255).round().astype(np.uint8), scene.rgb)
    assert batch.offsets.tolist() == [0, len(scene.points)]


def test_points_of_object_storage_are_read_ahead_by_every_rank_and_are_the_same(
    dataset: str, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in Path(dataset).iterdir():
        open_store(s3_bucket).write(path.name, path)
    asked: Counter[str] = Counter()
    read_one = DatasetReader.read_keyed

    def count_it(self: DatasetReader, shard_index: int, sample_index: int):
        asked[self.url] += 1
        return read_one(self, shard_index, sample_index)

    monkeypatch.setattr(DatasetReader, "read_keyed", count_it)

    def read(**cache) -> int:
        """How many samples were read one by one, of the 12 of an epoch."""
        asked.clear()
        for rank in range(2):
            ranks = {"rank": rank, "world_size": 2}
            found = epochs(make(s3_bucket, **ranks, cache_dir=tmp_path / "cache", **cache), 1)
            assert all(same(left, right) for left, right in zip(found, make(dataset, **ranks), strict=True))
        return asked[s3_bucket]

    assert read(cache_bytes=0) == 12
    assert not any(tmp_path.iterdir())
    assert read() < 3


def test_loader_processes_change_nothing(dataset: str) -> None:
    pairs = zip(make(dataset, num_workers=2), make(dataset), strict=True)
    assert all(same(left, right) for left, right in pairs)


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_size": 5}, {"streams": 2}, {"shuffle_block": 500}])
def test_the_state_of_another_stream_is_refused_by_name(dataset: str, change: dict[str, int]) -> None:
    (name, value), *_ = change.items()
    with pytest.raises(ValueError, match=f"{name} is {value} there and {ORDER[name]} here"):
        make(dataset).load_state_dict(make(dataset, **change).state_dict())


def test_the_state_of_other_data_is_refused(dataset: str) -> None:
    other = stream(str(OLDER / "frames"), **ORDER)
    with pytest.raises(ValueError, match="shards_sha256 is"):
        make(dataset).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="step is None, wanted a number"):
        make(dataset).load_state_dict({})


def test_a_second_loop_is_refused_where_it_would_mix_up_the_position(dataset: str) -> None:
    points = make(dataset)
    loop = iter(points)
    next(loop)
    next(iter(points))
    with pytest.raises(RuntimeError, match="this loop is at step 1 and its stream at step 2"):
        next(loop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 14}, "the dataset has 13 samples"),
        ({"world_size": 5}, "the world size is 5"),
        ({"rank": 1}, "rank is 1"),
        ({"frame": "body"}, "frame is 'body', wanted 'camera' or 'world'"),
        ({"pixel_stride": 0}, "pixel_stride is 0"),
        ({"max_depth": float("nan")}, "max_depth is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"cache_bytes": -1}, "cache_bytes is -1, wanted 0 or more, or None"),
        ({"num_workers": -1}, "num_workers is -1"),
    ],
)
def test_numbers_out_of_range_are_refused_at_once(dataset: str, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(dataset, **change)
