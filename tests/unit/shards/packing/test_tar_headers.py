"""Tars on a real S3 server become a dataset by their headers alone; checksums are filled in when somebody reads all."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_dataset import tar_of
from s3_server import S3Server

from shards.errors import CallError, ShardError
from shards.manifest import FILLED_INDEX_NAME, FILLED_TABLE_NAME, INDEX_NAME, MANIFEST_NAME, TABLE_NAME, shard_name
from shards.packing import existing
from shards.packing.existing import index_tars
from shards.packing.filling import count_voxels_of, fill
from shards.packing.pack import pack
from shards.reader import ChangedTarError, DatasetReader
from shards.rows import HAS_CRC
from shards.stores.folder import FolderStore
from shards.stores.patient import PatientStore
from shards.stores.place import open_store
from shards.verify import verify

NUM_FRAMES = 9


@pytest.fixture(scope="module")
def full(module_s3_bucket: str, tmp_path_factory: pytest.TempPathFactory, make_scene: Callable[..., Path]) -> str:
    """A dataset with all its checksums: what is read of headers is measured, so its images have a usual size."""
    scene = make_scene(tmp_path_factory.mktemp("raw") / "kitchen", NUM_FRAMES, (320, 240))
    pack("seven-scenes", scene, module_s3_bucket, shard_size_bytes=600_000)
    return module_s3_bucket


@pytest.fixture(scope="module")
def read_once(full: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PatientStore]:
    """The index of the same tars by their headers, and the store that was asked for them."""
    folder, store = tmp_path_factory.mktemp("headers") / "index", open_store(full)
    assert isinstance(store, PatientStore)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(existing, "open_store", lambda url: store if url == full else open_store(url))
        index_tars(full, str(folder), counts=False, headers_only=True)
    return folder, store


@pytest.fixture
def index(read_once: tuple[Path, PatientStore], tmp_path: Path) -> Path:
    return Path(shutil.copytree(read_once[0], tmp_path / "index"))


@pytest.fixture
def own_tar(full: str, s3_server: S3Server, tmp_path: Path) -> tuple[str, Path]:
    """One tar in a place of its own, which a test may change, and its index by headers."""
    url = f"s3://{s3_server.make_bucket()}/tars"
    open_store(url).write("one.tar", open_store(full).read(shard_name(0)))
    index_tars(url, str(tmp_path / "own"), counts=False, headers_only=True)
    return url, tmp_path / "own"


def read_all(reader: DatasetReader) -> list[tuple[str, bytes, bytes]]:
    places = [(shard, i) for shard, count in enumerate(reader.samples_per_shard.tolist()) for i in range(count)]
    samples = [reader.read_keyed(*place) for place in places]
    return [(key, sample.color, sample.depth) for key, sample in samples]  # type: ignore[union-attr]


def test_a_small_share_of_the_bytes_gives_the_same_rows_without_checksums(
    full: str, read_once: tuple[Path, PatientStore]
) -> None:
    folder, store = read_once
    wanted, found = DatasetReader(full), DatasetReader(str(folder))
    assert store.num_bytes < 0.12 * wanted.manifest.size_bytes
    assert store.num_requests < 2.5 * NUM_FRAMES + 2 * wanted.manifest.num_shards
    for shard in range(wanted.manifest.num_shards):
        assert found.keys(shard) == wanted.keys(shard)
        whole, bare = wanted.rows(shard).table, found.rows(shard).table
        assert not bare["crc32c"].any()
        np.testing.assert_array_equal(bare["flags"] | HAS_CRC, whole["flags"])
        for name in set(whole.dtype.names or ()) - {"crc32c", "flags", "row_crc32c"}:
            np.testing.assert_array_equal(bare[name], whole[name], err_msg=name)
    assert not found.table.is_hashed.any()
    assert wanted.table.is_hashed.all()
    assert read_all(found) == read_all(wanted)
    report = verify(str(folder))
    assert (report.problems, report.num_without_checksum) == ((), NUM_FRAMES)


def test_filling_makes_it_the_index_of_a_full_reading_and_readers_of_before_go_on(full: str, index: Path) -> None:
    before = DatasetReader(str(index))
    report, manifest = fill(str(index))
    assert report.problems == ()
    assert manifest is not None
    assert (manifest.generation, manifest.identity) == (2, before.manifest.shards_sha256)
    for name, filled in ((INDEX_NAME, FILLED_INDEX_NAME), (TABLE_NAME, FILLED_TABLE_NAME)):
        assert (index / filled).read_bytes() == open_store(full).read(name)
    after = DatasetReader(str(index))
    assert after.manifest == manifest
    counted = after.voxel_counts()
    assert counted is not None
    assert counted.all()
    assert read_all(after) == read_all(before)
    report = verify(str(index))
    assert (report.problems, report.num_without_checksum) == ((), 0)
    assert fill(str(index))[1] is None


@pytest.mark.parametrize("num_written", range(4))
def test_filling_that_is_cut_off_leaves_the_dataset_of_before(
    index: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    before, write, written = DatasetReader(str(index)), FolderStore.write, []

    def cut_off(store: FolderStore, name: str, data: bytes | Path) -> None:
        if len(written) == num_written:
            raise KeyboardInterrupt
        written.append(name)
        write(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            fill(str(index))
    now = DatasetReader(str(index))
    assert now.manifest == before.manifest
    assert now.read_frame(0, 0).frame_id == "frame-000000"
    assert MANIFEST_NAME not in written
    _, manifest = fill(str(index))
    assert manifest is not None
    assert DatasetReader(str(index)).read_frame(0, 0).frame_id == "frame-000000"


def test_filling_gives_way_to_who_has_written_meanwhile(index: Path) -> None:
    def count(done: int, _: int) -> None:
        if done == 1:
            count_voxels_of(str(index))

    with pytest.raises(
        ShardError, match=r"else has written generation 2 of it in the meantime .* began with 1\); call"
    ):
        fill(str(index), on_progress=count)
    assert DatasetReader(str(index)).manifest.generation == 2
    _, manifest = fill(str(index))
    assert manifest is not None
    assert (manifest.generation, manifest.filled_from is None) == (3, False)


def test_a_tar_that_has_changed_is_named_by_whoever_reads_it(own_tar: tuple[str, Path]) -> None:
    url, folder = own_tar
    store = open_store(url)
    content = store.read("one.tar")
    reader = DatasetReader(str(folder))
    wanted = reader.read_frame(0, 1)
    store.write("one.tar", content[:5000] + b"x" + content[5001:])  # of the same size, within an image
    named = rf"{url}/one.tar: is another object than the one whose headers were indexed, of {len(content)} bytes: now"
    with pytest.raises(ChangedTarError, match=named):
        reader.read_frame(0, 1)
    report, manifest = fill(str(folder))
    assert manifest is None
    assert "is another object than the one" in report.problems[0].message
    assert report.broken_keys == reader.keys(0)
    assert sorted(path.name for path in folder.iterdir()) == [INDEX_NAME, MANIFEST_NAME, TABLE_NAME]
    store.write("one.tar", content)
    assert reader.read_frame(0, 1).color == wanted.color


def test_tars_copied_into_a_folder_are_no_longer_known(own_tar: tuple[str, Path], tmp_path: Path) -> None:
    url, _ = own_tar
    index_tars(url, None, counts=False, headers_only=True)
    for name in open_store(url).list():
        FolderStore(tmp_path / "copy").write(name, open_store(url).read(name))
    with pytest.raises(
        ChangedTarError, match=r"in a folder nothing tells whether it is that tar; remove manifest.json"
    ):
        DatasetReader(str(tmp_path / "copy")).read_frame(0, 0)


def test_what_cannot_be_indexed_by_headers_is_named(s3_bucket: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    with pytest.raises(CallError, match="is a folder, where tars are read for nothing; leave out --headers-only"):
        index_tars(str(tmp_path), None, counts=False, headers_only=True)
    image = b"\xff\xd8\xff" + bytes(9000)
    for members, message in (
        ({}, "x.tar: holds no samples; remove it"),
        ({"a/whole.points.npz": b"1", "a/whole.meta.json": b"{}"}, "is a scene, which has to be read whole"),
        ({"a/b.color.jpg": image}, r"sample a/b: wanted exactly one of depth.png, depth.zst"),
    ):
        open_store(s3_bucket).write("x.tar", tar_of(members))
        with pytest.raises(ShardError, match=message):
            index_tars(s3_bucket, None, counts=False, headers_only=True)
    assert open_store(s3_bucket).list() == ("x.tar",)


def test_an_image_whose_size_stands_far_behind_is_read_as_far(own_tar: tuple[str, Path]) -> None:
    url, _ = own_tar
    store = open_store(url)
    with tarfile.open(fileobj=io.BytesIO(store.read("one.tar"))) as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    first = next(name for name in members if name.endswith(".color.jpg"))
    profile = b"\xff\xe1\xff\xfd" + bytes(0xFFFB)  # of 64 KiB, as a phone's preview is
    members[first] = members[first][:2] + profile + members[first][2:]
    store.write("one.tar", tar_of(members))
    manifest = index_tars(url, None, counts=False, headers_only=True)
    reader = DatasetReader(url)
    assert reader.rows(0).table["color_size"][0].tolist() == [320, 240]
    assert manifest.num_samples == len(reader.keys(0))
    assert verify(url).problems == ()
