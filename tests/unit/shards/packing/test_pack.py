"""The same input gives the same objects, whoever packs it and however often it was interrupted."""

import dataclasses
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.errors import CallError, ShardError
from shards.images import encode_depth
from shards.manifest import INDEX_NAME, MANIFEST_NAME, PACKING_NAME, VOXELS_NAME, piece_name, shard_name
from shards.packing.pack import pack
from shards.packing.piece import ShardPiece
from shards.reader import DatasetReader
from shards.schema import decode_frame_depth, frame_from_members
from shards.sources.options import SourceOptions
from shards.stores.folder import FolderStore
from shards.stores.store import StoreError
from shards.verify import verify

CAP = 40_000


@pytest.fixture
def source(tmp_path: Path, make_scene: Callable[..., Path]) -> Path:
    return make_scene(tmp_path / "kitchen", 10)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def packed(source: Path, folder: Path, **options: object) -> dict[str, bytes]:
    pack("seven-scenes", source, str(folder), shard_size_bytes=CAP, **options)  # type: ignore[arg-type]
    return contents(folder)


class Interrupted(Exception):
    pass


def interrupt_before(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the store fail as if the process ended just before object `name` was written."""
    write, write_if_absent = FolderStore.write, FolderStore.write_if_absent

    def stop_or(go_on: Callable[..., object]) -> Callable[..., object]:
        def write_unless_stopped(self: FolderStore, found: str, data: object) -> object:
            if found == name:
                raise Interrupted
            return go_on(self, found, data)

        return write_unless_stopped

    monkeypatch.setattr(FolderStore, "write", stop_or(write))
    monkeypatch.setattr(FolderStore, "write_if_absent", stop_or(write_if_absent))


def test_any_number_of_workers_gives_the_same_objects(source: Path, tmp_path: Path) -> None:
    once = packed(source, tmp_path / "1")
    assert len(once) > 5
    assert packed(source, tmp_path / "3", num_workers=3) == once
    assert packed(source, tmp_path / "2", num_workers=2) == once
    assert PACKING_NAME not in once
    assert not [name for name in once if name.endswith(".idx")]


def test_the_objects_do_not_depend_on_where_source_and_dataset_lie(source: Path, tmp_path: Path) -> None:
    once = packed(source, tmp_path / "1")
    elsewhere = shutil.copytree(source, tmp_path / "deeper" / "down" / "kitchen")
    assert packed(elsewhere, tmp_path / "2") == once
    for data in once.values():
        assert str(tmp_path).encode() not in data


def test_frames_and_every_choose_by_position(source: Path, tmp_path: Path) -> None:
    def numbers(folder: str, **options: object) -> list[int]:
        packed(source, tmp_path / folder, **options)
        reader = DatasetReader(str(tmp_path / folder))
        return [int(key[-6:]) for shard in range(reader.manifest.num_shards) for key in reader.index(shard).keys]

    assert numbers("a", frames=slice(2, 5)) == [2, 3, 4]
    assert numbers("b", frames=slice(-3, None)) == [7, 8, 9]
    assert numbers("c", every=4) == [0, 4, 8]
    assert numbers("d", frames=slice(1, 8), every=3) == [1, 4, 7]
    with pytest.raises(CallError, match="none of its 10 frames is left by --frames"):
        numbers("e", frames=slice(10, 20))


@pytest.mark.parametrize(
    "moment",
    [
        shard_name(0),
        piece_name(0),
        shard_name(2),
        piece_name(2),
        INDEX_NAME,
        "shards.bin",
        MANIFEST_NAME,
    ],
)
def test_an_interrupted_pack_is_no_dataset_and_resumes_to_the_same_objects(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    wanted = packed(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_before(patch, moment)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "resumed")
    before = contents(tmp_path / "resumed")
    assert MANIFEST_NAME not in before
    with pytest.raises(CallError, match="packing was never finished; run the same `t4p shards pack` again, it resumes"):
        DatasetReader(str(tmp_path / "resumed"))
    report = pack("seven-scenes", source, str(tmp_path / "resumed"), shard_size_bytes=CAP, num_workers=2)
    assert contents(tmp_path / "resumed") == wanted
    assert report.num_kept_shards == sum(name.endswith(".idx") for name in before)


def test_finished_shards_are_not_packed_again(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, shard_name(2))
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "resumed")
    kept = {name: (tmp_path / "resumed" / name).stat().st_mtime_ns for name in (shard_name(0), shard_name(1))}
    packed(source, tmp_path / "resumed")
    assert {name: (tmp_path / "resumed" / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.parametrize("damaged", [shard_name(1), piece_name(1)])
def test_a_damaged_leftover_is_packed_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    wanted = packed(source, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "resumed")
    data = bytearray((tmp_path / "resumed" / damaged).read_bytes())
    data[40] ^= 1
    (tmp_path / "resumed" / damaged).write_bytes(data)
    assert packed(source, tmp_path / "resumed") == wanted


def test_leftovers_of_other_options_are_refused(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    before = contents(tmp_path / "x")
    with pytest.raises(
        ShardError, match=r"unfinished pack with other options \(every was 1, now 2\); repeat that call"
    ):
        packed(source, tmp_path / "x", every=2)
    assert contents(tmp_path / "x") == before


def test_leftovers_of_a_source_that_has_changed_are_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    K = (source / "camera-intrinsics.txt").read_text()
    (source / "camera-intrinsics.txt").write_text("50 0 32\n0 50 24\n0 0 1\n")
    with pytest.raises(ShardError, match="the source has changed, so delete these objects or pack to another place"):
        packed(source, tmp_path / "x")
    (source / "camera-intrinsics.txt").write_text(K)  # touched, but as it was
    for kind in ("color.jpg", "depth.png", "pose.txt"):
        (source / f"frame-000001.{kind}").unlink()
    with pytest.raises(ShardError, match="an unfinished pack of other frames"):
        packed(source, tmp_path / "x")


def test_a_frame_changed_in_the_middle_of_a_kept_shard_is_noticed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    assert ShardPiece.decode((tmp_path / "x" / piece_name(0)).read_bytes()).key_list()[1] == "kitchen/frame-000001"
    pose = source / "frame-000001.pose.txt"
    before = pose.read_text()
    pose.write_text(before.replace(before.split()[3], "5.000000000000000000e-01"))
    with pytest.raises(ShardError, match=r"shard-000000.tar: an unfinished pack .*; the source has changed, so delete"):
        packed(source, tmp_path / "x")
    pose.write_text(before)  # another time, the same content: nothing to pack again
    report = pack("seven-scenes", source, str(tmp_path / "x"), shard_size_bytes=CAP)
    assert report.num_kept_shards == report.num_shards


def test_a_resumed_pack_does_not_read_frames_again_that_nobody_touched(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")

    def refuse(read: object, task: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("shards.packing.pack.load_frame", refuse)
    seen: list[tuple[int, int]] = []
    packed(source, tmp_path / "x", on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 2
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize("num_done", [1, 5, 10])
def test_a_pack_that_was_overtaken_leaves_the_published_dataset_alone(
    source: Path, tmp_path: Path, num_done: int
) -> None:
    wanted = packed(source, tmp_path / "fresh")

    def overtake(done: int, total: int) -> None:
        if done == num_done:
            packed(source, tmp_path / "x")

    with pytest.raises(ShardError, match="another packer has taken over or published here since this one started"):
        packed(source, tmp_path / "x", on_progress=overtake)
    assert contents(tmp_path / "x") == wanted


def test_a_pack_overtaken_by_one_of_another_source_of_that_name_writes_nothing_more(
    source: Path, tmp_path: Path, make_scene: Callable[..., Path]
) -> None:
    other = make_scene(tmp_path / "elsewhere" / "kitchen", 14, seed=1)
    wanted = packed(other, tmp_path / "fresh")

    def overtake(done: int, total: int) -> None:
        if done == 1:
            packed(other, tmp_path / "x")

    with pytest.raises(ShardError, match="another packer has taken over"):
        packed(source, tmp_path / "x", on_progress=overtake)
    assert contents(tmp_path / "x") == wanted
    assert verify(str(tmp_path / "x")).problems == ()


def test_storage_that_fails_on_resume_is_no_damage(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    before = {name: data for name, data in contents(tmp_path / "x").items() if name != PACKING_NAME}
    read = FolderStore.read

    def fail(self: FolderStore, name: str) -> bytes:
        if name == piece_name(1):
            raise StoreError("the network is down")
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "read", fail)
        with pytest.raises(StoreError, match="the network is down"):
            packed(source, tmp_path / "x")
    assert {name: data for name, data in contents(tmp_path / "x").items() if name != PACKING_NAME} == before


@pytest.mark.parametrize("moment", [piece_name(1), PACKING_NAME])
def test_stopped_while_cleaning_up_the_same_call_ends_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    wanted = packed(source, tmp_path / "fresh")
    delete = FolderStore.delete

    def stop(self: FolderStore, name: str) -> None:
        if name == moment:
            raise Interrupted
        delete(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "delete", stop)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    assert MANIFEST_NAME in contents(tmp_path / "x")
    assert PACKING_NAME in contents(tmp_path / "x")
    with pytest.raises(CallError, match="already holds a dataset"):
        packed(source, tmp_path / "x", every=2)
    report = pack("seven-scenes", source, str(tmp_path / "x"), shard_size_bytes=CAP)
    assert (report.num_samples, report.num_kept_shards) == (10, report.num_shards)
    assert contents(tmp_path / "x") == wanted


def test_what_a_killed_write_left_is_gone_at_the_end(source: Path, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ".incoming-0123").write_bytes(b"half")
    assert packed(source, tmp_path / "x") == packed(source, tmp_path / "fresh")


def test_a_full_disk_in_the_temporary_folder_is_told_from_other_failures(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        with pytest.raises(ShardError, match=r"temporary files: cannot write .*nowhere.*, point TMPDIR to a disk"):
            packed(source, tmp_path / "x")

    def broken_pipe(done: int, total: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        packed(source, tmp_path / "y", on_progress=broken_pipe)


@pytest.mark.parametrize("num_frames", [5, 6, 7, 8])  # of which some fill their last shard and some do not
def test_a_source_that_has_grown_gives_what_a_fresh_pack_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_scene: Callable[..., Path], num_frames: int
) -> None:
    source = make_scene(tmp_path / "kitchen", num_frames)
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    make_scene(source, 10)
    assert packed(source, tmp_path / "x") == packed(source, tmp_path / "fresh")


def test_no_leftover_shard_stays_beside_a_smaller_dataset(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, MANIFEST_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "x")
    (tmp_path / "x" / piece_name(1)).write_bytes(b"damaged")  # so that shard 2 and the following are not looked at
    for path in source.glob("frame-00000[5-9]*"):
        path.unlink()
    assert packed(source, tmp_path / "x") == packed(source, tmp_path / "fresh")


def test_a_place_with_a_dataset_is_refused_and_left_alone(source: Path, tmp_path: Path) -> None:
    before = packed(source, tmp_path / "x")
    with pytest.raises(
        CallError, match=r"x: already holds a dataset \(manifest.json is there\); pack to another place"
    ):
        packed(source, tmp_path / "x")
    assert contents(tmp_path / "x") == before


def test_shards_of_unknown_origin_are_refused(source: Path, tmp_path: Path) -> None:
    packed(source, tmp_path / "x")
    (tmp_path / "x" / MANIFEST_NAME).unlink()
    with pytest.raises(ShardError, match=r"holds index.bin .* not ours to resume or replace; delete them"):
        packed(source, tmp_path / "x")


def test_a_dataset_published_in_the_meantime_is_not_replaced(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_if_absent = FolderStore.write_if_absent

    def late(self: FolderStore, name: str, data: bytes) -> bool:
        if name == MANIFEST_NAME:
            self.write(MANIFEST_NAME, b"theirs")
        return write_if_absent(self, name, data)

    monkeypatch.setattr(FolderStore, "write_if_absent", late)
    with pytest.raises(ShardError, match="somebody else published another dataset here"):
        packed(source, tmp_path / "x")
    assert (tmp_path / "x" / MANIFEST_NAME).read_bytes() == b"theirs"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_depth_image_that_does_not_decode_stops_packing(source: Path, tmp_path: Path, num_workers: int) -> None:
    path = source / "frame-000003.depth.png"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(
        ShardError,
        match=r"frame-000003.depth.png\): depth cannot be decoded: found a 64x48 16-bit grayscale PNG of 3000 bytes.*; "
        "restore the file, or remove the frame, and pack again",
    ):
        packed(source, tmp_path / "x", num_workers=num_workers)
    assert MANIFEST_NAME not in contents(tmp_path / "x")


def test_full_checks_and_zstd_count_voxels_and_every_number_of_workers_gives_the_same(
    source: Path, tmp_path: Path
) -> None:
    plain = packed(source, tmp_path / "plain")
    assert VOXELS_NAME not in plain
    full = packed(source, tmp_path / "full", check="full", num_workers=2)
    assert {name: full[name] for name in plain if name.endswith((".tar", ".bin"))} == {
        name: plain[name] for name in plain if name.endswith((".tar", ".bin"))
    }
    packed(source, tmp_path / "zstd", depth_codec="zstd")
    readers = [DatasetReader(str(tmp_path / name)) for name in ("plain", "full", "zstd")]
    counts = [reader.voxel_counts() for reader in readers]
    assert counts[0] is None
    assert counts[1] is not None
    np.testing.assert_array_equal(counts[1], counts[2])
    assert counts[1].min() > 1
    one, _, other = (reader.read_frame(0, 0) for reader in readers)
    assert (other.depth_format, other.depth_size, other.no_reading) == ("zst", (64, 48), 0)
    np.testing.assert_array_equal(decode_frame_depth(one, ""), decode_frame_depth(other, ""))
    assert frame_from_members(readers[2].key(0, 0), readers[2].read_members(0, 0)).depth_size == (64, 48)
    for name in ("full", "zstd"):
        assert verify(str(tmp_path / name)).problems == ()
    data = bytearray(full[VOXELS_NAME])
    data[6] ^= 1
    manifest = dataclasses.replace(readers[1].manifest, voxels_sha256=hashlib.sha256(data).hexdigest(), generation=2)
    (tmp_path / "full" / VOXELS_NAME).write_bytes(data)
    (tmp_path / "full" / MANIFEST_NAME).write_bytes(manifest.encode())
    (problem,) = verify(str(tmp_path / "full")).problems
    assert (problem.object_name, problem.key) == (VOXELS_NAME, "kitchen/frame-000003")
    assert re.match(r"\d+ voxels are stored, its depth has \d+; count again", problem.message)


def damaged(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0x40]) + data[position + 1 :]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("frame-000003.depth.png", lambda data: damaged(data, 3000), ".*does not have its CRC: the bytes are"),
        ("frame-000003.depth.png", lambda data: damaged(data, 18), "depth is 16448x48 but K_depth"),
        (
            "frame-000003.depth.png",
            lambda data: data[:-20],
            "depth cannot be decoded: .*cut short",
        ),
        (
            "frame-000003.color.jpg",
            lambda data: data[:-200],
            "color cannot be decoded: .*cut short within",
        ),
        ("frame-000003.color.jpg", lambda data: data[:200], "color cannot be decoded: found a JPEG of 200 bytes"),
        (
            "frame-000003.color.jpg",
            lambda data: b"junk" + data,
            "color is .* bytes starting with .*, wanted a JPEG or PNG",
        ),
    ],
)
def test_what_headers_and_checksums_tell_stops_packing(
    source: Path, tmp_path: Path, name: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path = source / name
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ShardError, match=rf"kitchen/frame-000003.*: {message}"):
        packed(source, tmp_path / "x")


def test_a_frame_of_another_size_than_its_intrinsics_stops_packing(source: Path, tmp_path: Path) -> None:
    (source / "frame-000004.depth.png").write_bytes(encode_depth(np.ones((96, 128), np.uint16)))
    with pytest.raises(
        ShardError,
        match=r"kitchen/frame-000004 \(.*frame-000004.depth.png\): depth is 128x96 but K_depth has its principal point "
        r"at \(32, 24\), so it is for about 64x48; give the intrinsics of this image size and pack again",
    ):
        packed(source, tmp_path / "x")


def test_colliding_keys_name_both_frames(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    make_scene(tmp_path / "src" / "a" / "chess" / "seq-01", 2)
    make_scene(tmp_path / "src" / "b" / "chess" / "seq-01", 2)
    with pytest.raises(
        ShardError,
        match=r"b/chess/seq-01/frame-000000.depth.png: key chess_2Fseq-01/frame-000000 is already taken by .*"
        r"a/chess/seq-01/frame-000000.depth.png; keys must be unique",
    ):
        packed(tmp_path / "src", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "workers must be at least 1, found 0"),
        ({"every": 0}, "every and max frames must be at least 1, found 0 and None"),
        ({"max_frames": 0}, "every and max frames must be at least 1, found 1 and 0"),
        (
            {"source_options": SourceOptions(min_confidence=1)},
            "seven-scenes has no use for --min-confidence; it takes --depth-scale, --intrinsics, --scenes",
        ),
        ({"licence": " "}, "the licence is ' ', wanted one line of text"),
        ({"licence": "CC\nBY"}, "wanted one line of text, such as 'CC BY 4.0'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    source: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(CallError, match=message):
        packed(source, tmp_path / "x", **options)
    with pytest.raises(CallError, match="shard size is 0 bytes"):
        pack("seven-scenes", source, str(tmp_path / "x"), shard_size_bytes=0)


def test_the_manifest_tells_where_the_data_came_from(source: Path, tmp_path: Path) -> None:
    manifest = json.loads(packed(source, tmp_path / "x", source_options=SourceOptions(500.0))[MANIFEST_NAME])
    assert manifest["num_samples"] == 10
    assert manifest["provenance"]["source_format"] == "seven-scenes"
    assert manifest["provenance"]["source"] == "kitchen"
    assert manifest["provenance"]["options"]["depth_scale"] == 500.0
    assert DatasetReader(str(tmp_path / "x")).read_frame(0, 0).depth_scale == 500.0


def test_a_licence_that_is_stated_replaces_what_is_known_of_the_format(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def licence_of(folder: str, **options: object) -> object:
        return json.loads(packed(source, tmp_path / folder, **options)[MANIFEST_NAME])["licence"]

    assert "non-commercial research" in str(licence_of("usual"))
    assert licence_of("stated", licence="CC BY-SA 4.0") == "CC BY-SA 4.0"
    assert DatasetReader(str(tmp_path / "stated")).manifest.licence == "CC BY-SA 4.0"
    with monkeypatch.context() as patched:
        interrupt_before(patched, INDEX_NAME)
        with pytest.raises(Interrupted):
            packed(source, tmp_path / "half", licence="mine")
    with pytest.raises(ShardError, match=r"other options \(licence was 'mine', now None\)"):
        packed(source, tmp_path / "half")
    assert licence_of("half", licence="mine") == "mine"


def test_progress_counts_to_the_end(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    packed(source, tmp_path / "x", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]


def test_a_shard_takes_four_requests(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(method: Callable[..., object]) -> Callable[..., object]:
        def noted(*arguments: object) -> object:
            asked.append(method.__name__)
            return method(*arguments)

        return noted

    for name in ("read", "read_range", "write", "write_if_absent", "exists", "list", "delete"):
        monkeypatch.setattr(FolderStore, name, noting(getattr(FolderStore, name)))

    def requests(folder: str, cap: int) -> tuple[int, int]:
        asked.clear()
        report = pack("seven-scenes", source, str(tmp_path / folder), shard_size_bytes=cap)
        return len(asked), report.num_shards

    (few, small), (many, large) = requests("few", 60_000), requests("many", 20_000)
    assert large > small + 2
    assert many - few == 4 * (large - small)  # whose place it is, the tar, its piece, and the piece again to remove it
