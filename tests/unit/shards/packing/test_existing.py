"""Tars that are there become a dataset as they are; voxels are counted afterwards without touching anything else."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_dataset import blank_manifest, tar_of, write_samples

from shards.errors import CallError, ShardError
from shards.manifest import INDEX_NAME, MANIFEST_NAME, TABLE_NAME, VOXELS_NAME, shard_name
from shards.packing.existing import index_tars
from shards.packing.filling import count_voxels_of
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.verify import verify


@pytest.fixture
def packed(tmp_path: Path, make_scene: Callable[..., Path]) -> Path:
    pack("seven-scenes", make_scene(tmp_path / "kitchen", 9), str(tmp_path / "packed"), shard_size_bytes=50_000)
    return tmp_path / "packed"


def samples_of(folder: Path) -> dict[str, dict[str, bytes]]:
    reader = DatasetReader(str(folder))
    places = [(shard, i) for shard, count in enumerate(reader.samples_per_shard.tolist()) for i in range(count)]
    return {reader.key(*place): reader.read_members(*place) for place in places}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_tars_beside_which_the_index_was_lost_get_the_same_index(
    packed: Path, tmp_path: Path, num_workers: int
) -> None:
    before = hashes(packed)
    for name in (MANIFEST_NAME, INDEX_NAME, TABLE_NAME):
        (packed / name).unlink()
    index_tars(str(packed), None, counts=False, num_workers=num_workers)
    after = hashes(packed)
    assert {name: after[name] for name in before if name != MANIFEST_NAME} == {
        name: before[name] for name in before if name != MANIFEST_NAME
    }
    assert verify(str(packed)).problems == ()
    with pytest.raises(CallError, match="already holds a dataset; --counts adds voxels"):
        index_tars(str(packed), None, counts=False)


def test_the_tars_of_webdatasets_own_writer_stay_where_they_are(packed: Path, tmp_path: Path) -> None:
    from webdataset.writer import TarWriter

    wanted = samples_of(packed)
    (tmp_path / "tars").mkdir()
    for name, keys in (("train-b.tar", list(wanted)[4:]), ("train-a.tar", list(wanted)[:4])):
        with TarWriter(str(tmp_path / "tars" / name), encoder=False) as writer:  # PAX headers, for times
            for key in keys:
                writer.write({"__key__": key, **wanted[key]})
    before = hashes(tmp_path / "tars")
    manifest = index_tars(str(tmp_path / "tars"), str(tmp_path / "index"), counts=True, num_workers=2)
    assert hashes(tmp_path / "tars") == before
    assert manifest.tar_names == ("train-a.tar", "train-b.tar")
    assert sorted(hashes(tmp_path / "index")) == [INDEX_NAME, MANIFEST_NAME, TABLE_NAME, VOXELS_NAME]
    reader = DatasetReader(str(tmp_path / "index"))
    assert samples_of(tmp_path / "index") == wanted
    assert reader.read_frame(1, 2).frame_id == "frame-000006"
    assert reader.read_frame(1, 2).dataset == "seven-scenes"
    assert verify(str(tmp_path / "index")).problems == ()
    path = tmp_path / "tars" / "train-b.tar"
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    assert {problem.object_name for problem in verify(str(tmp_path / "index")).problems} == {"train-b.tar"}
    with pytest.raises(ShardError, match=r"tars/train-b.tar, sample kitchen/frame-000004: crc32c is"):
        reader.read_frame(1, 0)


def test_counts_are_a_new_generation_and_nothing_else(packed: Path, tmp_path: Path) -> None:
    before, old = hashes(packed), DatasetReader(str(packed))
    assert old.voxel_counts() is None
    manifest = count_voxels_of(str(packed))
    assert (manifest.generation, manifest.shards_sha256) == (2, old.manifest.shards_sha256)
    after = hashes(packed)
    assert {name: after[name] for name in before if name != MANIFEST_NAME} == {
        name: before[name] for name in before if name != MANIFEST_NAME
    }
    pack("seven-scenes", tmp_path / "kitchen", str(tmp_path / "full"), check="full", shard_size_bytes=50_000)
    counts = DatasetReader(str(packed)).voxel_counts()
    assert counts is not None
    np.testing.assert_array_equal(counts, DatasetReader(str(tmp_path / "full")).voxel_counts())
    assert verify(str(packed)).problems == ()
    assert old.read_frame(0, 0).frame_id == "frame-000000"  # a reader of the generation before
    (packed / VOXELS_NAME).write_bytes(b"x" * 18)
    with pytest.raises(ShardError, match=r"voxels.bin: sha256 is \w{64} \(18 bytes\), the manifest says \w{64} \(18 "):
        DatasetReader(str(packed)).voxel_counts()


def test_what_cannot_be_indexed_is_named(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"nowhere: no \*.tar in it"):
        index_tars(str(tmp_path / "nowhere"), None, counts=False)
    older = Path(__file__).resolve().parents[3] / "data/older/frames"
    with pytest.raises(CallError, match="holds frames in format 1, and voxels are counted of frames in format 2"):
        count_voxels_of(str(older))
    tars = tmp_path / "tars"
    for content, message in (
        (b"junk" * 999, r"x.tar: (not a tar|holds no samples)"),
        (tar_of({"a/b.color.jpg": b"1"}), r"x.tar, sample a/b|sample a/b: wanted exactly one of depth.png"),
        (tar_of({"flat.color.jpg": b"1"}), r"x.tar: 'flat' is no key SCENE/FRAME"),
        (tar_of({"../../a.color.jpg": b"1"}), r"x.tar: '' is no key SCENE/FRAME"),
    ):
        tars.mkdir(exist_ok=True)
        (tars / "x.tar").write_bytes(content)
        with pytest.raises(ShardError, match=message):
            index_tars(str(tars), None, counts=False)
    (tars / "x.tar").write_bytes((packed / shard_name(0)).read_bytes())
    (tars / "y.tar").write_bytes((packed / shard_name(0)).read_bytes())
    with pytest.raises(ShardError, match=r"y.tar: key kitchen/frame-000000 is in an earlier tar too"):
        index_tars(str(tars), None, counts=False)
    assert sorted(path.name for path in tars.iterdir()) == ["x.tar", "y.tar"]


@pytest.mark.parametrize("name", ["../x.tar", ".x.tar", "a/b.tar", "x.zip", "a\x1b.tar"])
def test_a_manifest_that_names_something_else_than_tars_is_refused(packed: Path, tmp_path: Path, name: str) -> None:
    blank = dataclasses.replace(blank_manifest(), tar_names=(name,))
    first = dict(list(samples_of(packed).items())[:1])
    write_samples(tmp_path / "other", list(first.items()), tmp_path / "scratch", blank)
    with pytest.raises(ShardError, match="is no name of a tar beside others"):
        DatasetReader(str(tmp_path / "other"))
