"""Samples by position: the bytes that were packed, or an error that names the sample."""

import json
import multiprocessing
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import shards.reader
from shards.errors import CallError, ShardError
from shards.manifest import ShardIndex, index_name, shard_name
from shards.packing.pack import pack
from shards.reader import DatasetReader, spread


@pytest.fixture
def source(tmp_path: Path, make_scene: Callable[..., Path]) -> Path:
    return make_scene(tmp_path / "kitchen", 9)


@pytest.fixture
def dataset(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "dataset"
    pack("seven-scenes", source, str(folder), shard_size_bytes=40_000)
    return folder


def positions(reader: DatasetReader) -> list[tuple[int, int]]:
    return [(shard, i) for shard, count in enumerate(reader.samples_per_shard) for i in range(count)]


def test_every_sample_is_read_back(dataset: Path, source: Path) -> None:
    reader = DatasetReader(str(dataset))
    assert reader.manifest.num_shards == len(reader.samples_per_shard) > 2
    assert reader.num_samples == reader.samples_per_shard.sum() == 9
    for number, (shard, i) in enumerate(positions(reader)):
        assert reader.key(shard, i) == f"kitchen/frame-{number:06d}"
        members = reader.read_members(shard, i)
        assert members["color.jpg"] == (source / f"frame-{number:06d}.color.jpg").read_bytes()
        assert members["depth.png"] == (source / f"frame-{number:06d}.depth.png").read_bytes()
        assert json.loads(members["meta.json"])["frame_id"] == f"frame-{number:06d}"
        assert reader.read_frame(shard, i).frame_id == f"frame-{number:06d}"
        assert reader.find(reader.key(shard, i)) == (shard, i)


def test_positions_outside_are_errors(dataset: Path) -> None:
    reader = DatasetReader(str(dataset))
    with pytest.raises(IndexError):
        reader.key(0, 1000)
    with pytest.raises(ShardError, match=rf"no shard 99, the dataset has {reader.manifest.num_shards}"):
        reader.key(99, 0)
    with pytest.raises(CallError, match=r"no sample 'kitchen/x' among 9; the first is kitchen/frame-000000, the last"):
        reader.find("kitchen/x")


def _read_first(reader: DatasetReader, connection: object) -> None:
    connection.send(reader.read_members(0, 0))  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_a_reader_survives_pickle_and_fork(
    source: Path, tmp_path: Path, place: str, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "there") if place == "folder" else request.getfixturevalue("s3_bucket")
    pack("seven-scenes", source, url, shard_size_bytes=40_000)
    reader = DatasetReader(url)
    members = reader.read_members(0, 0)
    assert pickle.loads(pickle.dumps(reader)).read_members(0, 0) == members
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        child = context.Process(target=_read_first, args=(reader, theirs))
        child.start()
        assert ours.poll(60)
        assert ours.recv() == members
        child.join()


def test_indexes_are_kept_but_not_without_bound(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards.reader, "_MAX_CACHED_INDEXES", 2)
    reader = DatasetReader(str(dataset))
    first = reader.index(0)
    assert reader.index(0) is first
    for shard in range(reader.manifest.num_shards):
        reader.index(shard)
    assert len(reader._indexes) == 2
    assert reader.index(0) is not first


def test_every_flipped_byte_of_a_sample_is_noticed(dataset: Path) -> None:
    path = dataset / shard_name(1)
    data = path.read_bytes()
    index = DatasetReader(str(dataset)).index(1)
    start, length = int(index.offsets[0]), int(index.lengths[0])
    for position in range(start, start + length, 97):
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        reader = DatasetReader(str(dataset))
        with pytest.raises(ShardError, match=re.escape(f"{path}, sample {index.keys[0]}: crc32c is")):
            reader.read_members(1, 0)
        if len(index.keys) > 1:
            reader.read_members(1, 1)


def test_a_truncated_shard_is_noticed(dataset: Path) -> None:
    index = DatasetReader(str(dataset)).index(0)
    cut = int(index.offsets[-1]) + 700
    data = (dataset / shard_name(0)).read_bytes()
    (dataset / shard_name(0)).write_bytes(data[:cut])
    reader = DatasetReader(str(dataset))
    last = len(index.keys) - 1
    with pytest.raises(
        ShardError, match=rf"sample {index.keys[last]}: found 700 bytes, wanted {index.lengths[last]}; the shard is cut"
    ):
        reader.read_members(0, last)
    reader.read_members(0, 0)


def test_a_flipped_index_is_noticed(dataset: Path) -> None:
    data = bytearray((dataset / index_name(0)).read_bytes())
    data[30] ^= 1
    (dataset / index_name(0)).write_bytes(data)
    with pytest.raises(ShardError, match=rf"{index_name(0)}: the index is damaged"):
        DatasetReader(str(dataset)).read_members(0, 0)


def test_the_index_of_another_shard_is_noticed(dataset: Path) -> None:
    last = DatasetReader(str(dataset)).manifest.num_shards - 1
    assert DatasetReader(str(dataset)).samples_per_shard[last] != DatasetReader(str(dataset)).samples_per_shard[0]
    (dataset / index_name(last)).write_bytes((dataset / index_name(0)).read_bytes())
    with pytest.raises(ShardError, match="samples, the shard table says"):
        DatasetReader(str(dataset)).key(last, 0)


@pytest.mark.parametrize("change", ["gap", "short", "long"])
def test_an_index_that_does_not_fill_its_shard_is_noticed(dataset: Path, change: str) -> None:
    index = DatasetReader(str(dataset)).index(0)
    offsets, lengths = index.offsets.copy(), index.lengths.copy()
    if change == "gap":
        offsets[1:] += 512
        lengths[-1] -= 512
    else:
        lengths[-1] += 10240 if change == "long" else -10240
    other = ShardIndex(index.keys, offsets, lengths, index.crc32c)
    (dataset / index_name(0)).write_bytes(other.encode())
    with pytest.raises(ShardError, match=rf"{index_name(0)}: its samples do not fill the \d+ bytes of the shard"):
        DatasetReader(str(dataset)).key(0, 0)


def test_ids_are_found_as_they_were_and_keys_come_first(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    for scene in ("a/seq-1", "a_2Fseq-1"):  # spelled a_2Fseq-1 and a_5F2Fseq-1
        make_scene(tmp_path / "raw" / scene, 1)
    pack("seven-scenes", tmp_path / "raw", str(tmp_path / "d"))
    reader = DatasetReader(str(tmp_path / "d"))
    for given, key in (
        ("a_5F2Fseq-1/frame-000000", "a_5F2Fseq-1/frame-000000"),
        ("a_2Fseq-1/frame-000000", "a_2Fseq-1/frame-000000"),  # the id of the other one, too
        ("a/seq-1/frame-000000", "a_2Fseq-1/frame-000000"),
    ):
        assert reader.key(*reader.find(given)) == key


def test_a_name_of_two_samples_is_refused(dataset: Path) -> None:
    index = DatasetReader(str(dataset)).index(0)
    keys = ("a_2Fb/c", "a/b_2Fc", *index.keys[2:])
    assert len(index.keys) >= 2
    other = ShardIndex(keys, index.offsets, index.lengths, index.crc32c)
    (dataset / index_name(0)).write_bytes(other.encode())
    with pytest.raises(CallError, match="'a/b/c' can be any of the samples a/b_2Fc, a_2Fb/c; give one of these"):
        DatasetReader(str(dataset)).find("a/b/c")


def test_a_place_without_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"nothing: no dataset here \(manifest.json is missing\)"):
        DatasetReader(str(tmp_path / "nothing"))


def test_a_damaged_shard_table_is_noticed(dataset: Path) -> None:
    (dataset / "shards.bin").write_bytes(b"x" * 48)
    with pytest.raises(ShardError, match=r"shards.bin: sha256 is .* the shard table is damaged"):
        DatasetReader(str(dataset))


@pytest.mark.parametrize("counts", [(9,), (4, 5), (1, 7, 1), (2, 2, 2, 2, 1)])
@pytest.mark.parametrize("wanted", [0, 1, 2, 5, 9, 50])
def test_samples_are_spread_evenly_over_the_shards(counts: tuple[int, ...], wanted: int) -> None:
    every = [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]
    found = [every.index(place) for place in spread(np.array(counts), wanted)]
    assert len(found) == min(wanted, len(every))
    assert not found or found[0] == 0
    assert len(found) < 2 or (found[-1] == 8 and np.ptp(np.diff(found)) <= 1)


@pytest.mark.parametrize("name", ["manifest.json", "shards.bin", index_name(0), shard_name(0)])
def test_a_file_larger_than_memory_is_damage_and_is_not_read(dataset: Path, name: str) -> None:
    os.truncate(dataset / name, 1 << 42)
    if name == shard_name(0):
        assert len(DatasetReader(str(dataset)).read_shard(0)) < 100_000
        return
    with pytest.raises(ShardError, match=re.escape(name)):
        DatasetReader(str(dataset)).index(0)
