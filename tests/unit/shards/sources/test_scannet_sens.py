"""ScanNet's .sens: written in the tests to the published layout, read by seeking, and held against an export of it."""

from __future__ import annotations

import io
import logging
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reprojection import proof
from sens_file import SensFile, SensFrame

from shards.errors import CallError, ShardError
from shards.images import decode_depth, encode_depth
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.schema import check_frame
from shards.sources import scannet_sens, synthetic
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions

DEFAULT = SourceOptions()
NUM_FRAMES = 6


def bigger(color: bytes, kind: str) -> bytes:
    """A colour image of twice the size: ScanNet's has another grid than its depth."""
    image = Image.open(io.BytesIO(color)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((2 * image.width, 2 * image.height)).save(buffer, kind)
    return buffer.getvalue()


def sens_of_room(kind: str = "JPEG", **changes: object) -> SensFile:
    """A procedural room as a scan of it."""
    refs = synthetic.scan(Path(f"seed=4,rooms=1,frames={NUM_FRAMES},width=80,height=60"), DEFAULT)
    frames = [synthetic.read(ref) for ref in refs]
    K = frames[0].K_depth
    twice = np.array([[2 * K[0, 0], 0, 2 * K[0, 2] + 0.5], [0, 2 * K[1, 1], 2 * K[1, 2] + 0.5], [0, 0, 1]])
    shots = [
        SensFrame(bigger(one.color, kind), decode_depth(one.depth), one.world_from_camera, (10**6 * i, 10**6 * i + 7))
        for i, one in enumerate(frames)
    ]
    return SensFile(shots, twice, K, (160, 120), **changes)


@pytest.fixture(scope="module")
def room() -> SensFile:
    return sens_of_room()


def like(room: SensFile, **changes: object) -> SensFile:
    return SensFile(changes.pop("frames", room.frames), room.K_color, room.K_depth, room.color_size, **changes)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize(("kind", "coding"), [("JPEG", 2), ("PNG", 1)])
@pytest.mark.parametrize("depth_coding", [0, 1])
def test_frames_come_out_as_they_went_in(
    tmp_path: Path, version: int, kind: str, coding: int, depth_coding: int
) -> None:
    sens = sens_of_room(kind, version=version, codings=(coding, depth_coding))
    sens.write(tmp_path / "scans" / "scene0000_00" / "scene0000_00.sens")
    refs = scannet_sens.scan(tmp_path, DEFAULT)
    assert [(one.scene_id, one.frame_id) for one in refs] == [("scene0000_00", str(i)) for i in range(NUM_FRAMES)]
    for ref, wanted in zip(refs, sens.frames, strict=True):
        frame = read_frame(ref)
        depth = check_frame(frame, "here")
        assert frame.color == wanted.color
        assert np.array_equal(depth, wanted.depth)
        assert frame.depth_scale == 1000
        np.testing.assert_allclose(frame.K_depth, sens.K_depth, rtol=1e-6)
        np.testing.assert_allclose(frame.K_color, sens.K_color, rtol=1e-6)
        np.testing.assert_allclose(frame.world_from_camera, wanted.pose, atol=1e-6)
        assert frame.timestamp == pytest.approx(wanted.stamps[1] / 1e6)


def test_its_poses_pass_the_proof_and_fail_it_inverted(tmp_path: Path, room: SensFile) -> None:
    room.write(tmp_path / "s.sens")
    found = proof([read_frame(ref) for ref in scannet_sens.scan(tmp_path / "s.sens", DEFAULT)])
    assert found["right"][0] < 0.01
    assert found["inverted"][0] > 5 * found["right"][0]
    assert found["flipped"][0] > 5 * found["right"][0]


def test_it_packs_what_an_export_of_it_packs(tmp_path: Path, room: SensFile) -> None:
    room.write(tmp_path / "scene0000_00.sens")
    export = tmp_path / "scene0000_00"
    for name in ("color", "depth", "pose", "intrinsic"):
        (export / name).mkdir(parents=True)
    for place, frame in enumerate(room.frames):
        (export / "color" / f"{place}.jpg").write_bytes(frame.color)
        (export / "depth" / f"{place}.png").write_bytes(encode_depth(frame.depth))
        np.savetxt(export / "pose" / f"{place}.txt", frame.pose.astype(np.float32))
    for name, K in (("color", room.K_color), ("depth", room.K_depth)):
        np.savetxt(export / "intrinsic" / f"intrinsic_{name}.txt", K.astype(np.float32))
    pack("scannet-sens", tmp_path / "scene0000_00.sens", str(tmp_path / "a"), every=2)
    pack("folder", export, str(tmp_path / "b"), every=2, source_options=SourceOptions(1000.0))
    one, other = (DatasetReader(str(tmp_path / name)) for name in "ab")
    assert one.num_samples == other.num_samples == NUM_FRAMES // 2
    for place in range(one.num_samples):
        mine, theirs = one.read_frame(0, place), other.read_frame(0, place)
        for name in ("scene_id", "frame_id", "color", "depth"):
            assert getattr(mine, name) == getattr(theirs, name)
        for name in ("K_depth", "K_color", "world_from_camera"):
            np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-6, atol=1e-7)


def test_listing_reads_the_heads_of_frames_alone(
    tmp_path: Path, room: SensFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    like(room, frames=list(room.frames) * 50).write(tmp_path / "s.sens")
    num_read, pread = [0], os.pread

    def counted(descriptor: int, size: int, place: int) -> bytes:
        data = pread(descriptor, size, place)
        num_read[0] += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    refs = scannet_sens.scan(tmp_path / "s.sens", DEFAULT)
    assert len(refs) == 300
    assert num_read[0] < 300 * 96 + 1000
    chosen = sum(ref.color.size_bytes + ref.depth.where.size_bytes for ref in refs[::25])
    assert num_read[0] + chosen < 0.06 * (tmp_path / "s.sens").stat().st_size


@pytest.mark.parametrize("value", [-np.inf, np.nan, 0.0])
def test_lost_poses_are_none_and_counted(
    tmp_path: Path, room: SensFile, caplog: pytest.LogCaptureFixture, value: float
) -> None:
    lost = np.full((4, 4), value)
    frames = [SensFrame(one.color, one.depth, lost if i in (1, 4) else one.pose) for i, one in enumerate(room.frames)]
    like(room, frames=frames).write(tmp_path / "s.sens")
    with caplog.at_level(logging.WARNING):
        refs = scannet_sens.scan(tmp_path, DEFAULT)
    assert [place for place, one in enumerate(refs) if one.world_from_camera is None] == [1, 4]
    assert "s.sens: 2 of 6 poses say that tracking was lost" in caplog.text


def test_cameras_apart_are_said(tmp_path: Path, room: SensFile, caplog: pytest.LogCaptureFixture) -> None:
    moved = np.eye(4)
    moved[0, 3] = -0.038
    like(room, extrinsics=(moved, np.eye(4))).write(tmp_path / "s.sens")
    with caplog.at_level(logging.WARNING):
        scannet_sens.scan(tmp_path, DEFAULT)
    assert "the extrinsics of colour and depth differ (3.8 cm apart)" in caplog.text


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.9, 0.98])
def test_a_cut_is_named_and_what_stands_before_it_is_taken_on_demand(
    tmp_path: Path, room: SensFile, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    path = tmp_path / "s.sens"
    starts = room.write(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    whole = sum(next_start <= int(share * len(data)) for next_start in [*starts[1:], len(data) - 136])
    with pytest.raises(ShardError, match=rf"s.sens: ends within frame {whole} of 6, .* --only-complete"):
        scannet_sens.scan(path, DEFAULT)
    with caplog.at_level(logging.WARNING):
        found = scannet_sens.scan(path, SourceOptions(only_complete=True))
    assert len(found) == whole
    assert f"{6 - whole} of 6 frames lie behind a cut or a damaged frame, the first is {whole}" in caplog.text


@pytest.mark.parametrize("seed", range(150))
def test_no_damage_is_taken_for_frames_without_a_word(
    tmp_path: Path, room: SensFile, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Flips in the header and in the heads of frames: an error that names the file, or as many frames as there were."""
    rng = np.random.default_rng(seed)
    path = tmp_path / "s.sens"
    starts = room.write(path)
    data = bytearray(path.read_bytes())
    start = int(rng.choice([0, *starts]))
    place = start + int(rng.integers(0, 96 if start else starts[0]))
    data[place] ^= 1 << int(rng.integers(0, 8))
    path.write_bytes(data)
    try:
        frames = [read_frame(ref) for ref in scannet_sens.scan(path, DEFAULT)]
        for frame in frames:
            check_frame(frame, "s.sens")
    except ShardError as error:
        said = str(error)
    else:
        said = caplog.text
    if "s.sens" in said:
        return
    assert len(frames) == NUM_FRAMES  # what a flip in a number of a pose says, the layout cannot know


@pytest.mark.parametrize("version", [3, 4])
def test_a_number_of_frames_that_is_too_small_is_said(
    tmp_path: Path, room: SensFile, caplog: pytest.LogCaptureFixture, version: int
) -> None:
    path = tmp_path / "s.sens"
    starts = like(room, version=version).write(path)
    with caplog.at_level(logging.WARNING):
        assert len(scannet_sens.scan(path, DEFAULT)) == 6
    assert caplog.text == ""
    data = bytearray(path.read_bytes())
    data[starts[0] - 8 : starts[0]] = struct.pack("<Q", 4)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert len(scannet_sens.scan(path, DEFAULT)) == 4
    assert "bytes behind its last frame are no readings" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 5}, r"not a .sens file of version 3 or 4 \(version 5\)"),
        ({"codings": (0, 1)}, r"colour is coded as 0, wanted 1 \(PNG\) or 2 \(JPEG\)"),
        ({"codings": (2, 2)}, r"depth is coded as 2 \(occi\), wanted 0 \(raw\) or 1 \(zlib\)"),
        ({"depth_scale": 0.0}, r"at 0 units a metre; the file is damaged"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, room: SensFile, changes: dict[str, object], message: str) -> None:
    like(room, **changes).write(tmp_path / "s.sens")
    with pytest.raises(ShardError, match=message):
        scannet_sens.scan(tmp_path, DEFAULT)


def test_what_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"no .sens in it or below; wanted scans/SCENE/SCENE.sens"):
        scannet_sens.scan(tmp_path, DEFAULT)
    for data in (b"", b"ab", struct.pack("<IQ", 4, 1 << 60), struct.pack("<IQ", 4, 4) + b"name"):
        (tmp_path / "s.sens").write_bytes(data)
        with pytest.raises(ShardError, match=r"s.sens: (ends after|not a .sens)"):
            scannet_sens.scan(tmp_path / "s.sens", DEFAULT)
