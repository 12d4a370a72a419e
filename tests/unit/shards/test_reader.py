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
from made_dataset import blank_manifest, write_slices

import shards.index
from shards.errors import CallError, ShardError
from shards.manifest import INDEX_NAME, shard_name
from shards.packing.pack import pack
from shards.reader import DatasetReader, spread
from shards.rows import ROW, SampleRows, bare_rows, check_layout
from shards.schema import Frame, frame_from_members


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


@pytest.mark.parametrize("whole_bytes", [1 << 20, 0])
def test_rows_are_kept_but_not_without_bound(dataset: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int) -> None:
    monkeypatch.setattr(shards.index, "_MAX_CACHED", 2)
    monkeypatch.setattr(shards.index, "WHOLE_BYTES", whole_bytes)
    reader = DatasetReader(str(dataset))
    first = reader.keys(0)
    assert reader.keys(0) is first
    for shard in range(reader.manifest.num_shards):
        reader.index(shard)
    assert len(reader._index._rows) == len(reader._index._keys) == 2
    assert reader.keys(0) is not first
    assert reader.keys(0) == first


@pytest.mark.parametrize("whole_bytes", [1 << 20, 0])
def test_rows_of_a_part_are_those_of_the_whole(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(shards.index, "WHOLE_BYTES", whole_bytes)
    whole = DatasetReader(str(dataset)).rows(1)
    assert whole.has_crc.all()
    for start, stop in ((0, 1), (1, len(whole)), (1, 1), (0, len(whole))):
        part = DatasetReader(str(dataset)).rows(1, start, stop)
        assert (part.shard_index, part.start, len(part)) == (1, start, stop - start)
        np.testing.assert_array_equal(part.table, whole.table[start:stop])
    with pytest.raises(IndexError, match="samples 0 to 99 of a shard of"):
        DatasetReader(str(dataset)).rows(1, 0, 99)


def test_a_sample_is_built_of_a_row_and_a_slice_that_somebody_kept(dataset: Path) -> None:
    reader = DatasetReader(str(dataset))
    rows = SampleRows.decode(pickle.loads(pickle.dumps(reader.rows(1))).encode())
    tar = (dataset / shard_name(1)).read_bytes()
    for i, (offset, length) in enumerate(zip(rows.offsets.tolist(), rows.lengths.tolist(), strict=True)):
        data = tar[offset : offset + length]
        for key in (None, reader.key(1, i)):
            frame, wanted = reader.sample_from_slice(rows, i, key, data), reader.read_frame(1, i)
            assert isinstance(frame, Frame)
            assert frame.color == wanted.color
            assert frame_from_members(reader.key(1, i), reader.read_members(1, i)).frame_id == frame.frame_id
            for name in ("K_depth", "K_color", "color_from_depth", "world_from_camera"):
                np.testing.assert_array_equal(getattr(frame, name), getattr(wanted, name))
        with pytest.raises(ShardError, match=rf"{shard_name(1)}, sample {reader.key(1, i)}: crc32c is"):
            reader.sample_from_slice(rows, i, None, data[:-1] + b"x")
        with pytest.raises(ShardError, match=r"found 512 bytes, wanted"):
            reader.sample_from_slice(rows, i, None, data[:512])


def test_rows_that_were_kept_are_noticed_when_they_are_others(dataset: Path) -> None:
    data = DatasetReader(str(dataset)).rows(0).encode()
    for position in range(0, len(data), 29):
        flipped = bytearray(data)
        flipped[position] ^= 4
        with pytest.raises(ShardError, match="no rows of samples as they were kept"):
            SampleRows.decode(bytes(flipped))
    with pytest.raises(ShardError, match="no rows of samples"):
        SampleRows.decode(data[:-1])


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


@pytest.mark.parametrize("whole_bytes", [1 << 20, 0])
def test_every_flipped_byte_of_the_index_is_noticed(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, whole_bytes: int
) -> None:
    monkeypatch.setattr(shards.index, "WHOLE_BYTES", whole_bytes)
    path, wanted = dataset / INDEX_NAME, re.escape(f"{dataset / INDEX_NAME}: the ")
    data = path.read_bytes()
    num_rows = DatasetReader(str(dataset)).num_samples
    for position in [*range(3, num_rows * ROW.itemsize, 131), *range(num_rows * ROW.itemsize, len(data), 7)]:
        flipped = bytearray(data)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        reader = DatasetReader(str(dataset))
        with pytest.raises(ShardError, match=rf"{wanted}(row of sample \d+|keys) of shard \d+.* damaged"):
            [reader.index(shard) for shard in range(reader.manifest.num_shards)]


def test_a_row_of_another_place_is_noticed(dataset: Path) -> None:
    path = dataset / INDEX_NAME
    data = path.read_bytes()
    path.write_bytes(data[ROW.itemsize :] + data[: ROW.itemsize])
    with pytest.raises(ShardError, match=r"index.bin: the row of sample 0 of shard 0, at byte 0, is damaged"):
        DatasetReader(str(dataset)).rows(0)
    path.write_bytes(data[:100])
    with pytest.raises(ShardError, match=r"index.bin: the row of sample 0 of shard 0, at byte 0, is damaged"):
        DatasetReader(str(dataset)).rows(0)


@pytest.mark.parametrize("change", ["gap", "short", "long"])
def test_rows_that_do_not_fill_their_shard_are_noticed(dataset: Path, change: str) -> None:
    rows = DatasetReader(str(dataset)).rows(0)
    offsets, lengths = rows.offsets.copy(), rows.lengths.copy()
    if change == "gap":
        offsets[1:] += 512
        lengths[-1] -= 512
    else:
        lengths[-1] += 10240 if change == "long" else -10240
    other = bare_rows(0, offsets.tolist(), lengths.tolist(), rows.crc32c.tolist())
    with pytest.raises(ShardError, match=r"here: its samples do not fill the \d+ bytes of the shard"):
        check_layout(other, (dataset / shard_name(0)).stat().st_size, "here")


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


def test_a_name_of_two_samples_is_refused(dataset: Path, tmp_path: Path) -> None:
    reader = DatasetReader(str(dataset))
    slices = [(key, reader.read_slice(0, i)) for i, key in enumerate(("a_2Fb/c", "a/b_2Fc"))]
    write_slices(tmp_path / "other", slices, tmp_path / "scratch", blank_manifest())
    with pytest.raises(CallError, match="'a/b/c' can be any of the samples a/b_2Fc, a_2Fb/c; give one of these"):
        DatasetReader(str(tmp_path / "other")).find("a/b/c")


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


@pytest.mark.parametrize("name", ["manifest.json", "shards.bin", INDEX_NAME, shard_name(0)])
def test_a_file_larger_than_memory_is_damage_and_is_not_read(dataset: Path, name: str) -> None:
    os.truncate(dataset / name, 1 << 42)
    if name == shard_name(0):
        assert len(DatasetReader(str(dataset)).read_shard(0)) < 100_000
        return
    if name == INDEX_NAME:  # what is behind the index harms nobody
        reader = DatasetReader(str(dataset))
        assert reader.key(0, 0) == "kitchen/frame-000000"
        assert len(reader._index._whole) == reader.manifest.index_bytes + 1
        return
    with pytest.raises(ShardError, match=re.escape(name)):
        DatasetReader(str(dataset)).index(0)
