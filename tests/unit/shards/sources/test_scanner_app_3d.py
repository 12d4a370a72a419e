"""3D Scanner App: real frames where they are at hand, and what can be wrong with a capture."""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reprojection import proof

from shards.errors import CallError, ShardError
from shards.images import decode_depth, encode_depth, without_location
from shards.schema import check_frame, members_of_frame
from shards.sources import scanner_app_3d
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions

DEFAULT = SourceOptions()


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Seven frames of our own writing, two of them without colour."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "my hall" / "All_Data"
    folder.mkdir(parents=True)
    for place in range(7):
        pose = np.eye(4)
        pose[:3, 3] = (place, 2, 3)
        fields = {
            "intrinsics": [160.0, 0, 80, 0, 160, 60, 0, 0, 1],
            "cameraPoseARFrame": [*pose.ravel()[:15].tolist(), 0.9999999],
            "time": 100.5 + place,
            "latitude": 52.5,
            "longitude": 13.4,
        }
        (folder / f"frame_{place:05d}.json").write_text(json.dumps(fields))
        depth = rng.integers(500, 4000, (24, 32)).astype(np.uint16)
        (folder / f"depth_{place:05d}.png").write_bytes(encode_depth(depth))
        Image.fromarray(rng.integers(0, 3, (24, 32), np.uint8)).save(folder / f"conf_{place:05d}.png")
        if place not in (1, 4):
            Image.fromarray(rng.integers(0, 255, (120, 160, 3), np.uint8)).save(folder / f"frame_{place:05d}.jpg")
    (folder / "info.json").write_text("{}")
    return folder


def test_real_frames_agree_with_one_another_and_not_with_their_poses_inverted_or_turned(
    shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shared_data / "3dscannerapp_corridor"
    with caplog.at_level(logging.WARNING):
        refs = scanner_app_3d.scan(root, DEFAULT)
    assert "20 of 30 depth images have no colour image, the first is 00001" in caplog.text
    frames = [read_frame(ref) for ref in refs]
    assert [frame.frame_id for frame in frames] == [f"{place:05d}" for place in range(0, 30, 3)]
    assert {frame.scene_id for frame in frames} == {"3dscannerapp_corridor"}
    found = proof(frames)
    assert found["right"][0] < 0.006
    assert found["right"][1] > 0.99
    for wrong in ("inverted", "flipped"):
        assert found[wrong][0] > 5 * found["right"][0]
        assert found[wrong][1] < 0.7
    every = [read_frame(ref) for ref in scanner_app_3d.scan(root, SourceOptions(min_confidence=0))]
    assert proof(every)["right"][1] < 0.92  # ARKit fills its depth in, and only confidence tells


def test_a_capture_is_read_with_k_at_the_size_of_each_image(capture: Path) -> None:
    refs = scanner_app_3d.scan(capture.parent.parent, DEFAULT)
    assert [(one.scene_id, one.frame_id) for one in refs] == [("my hall", f"{i:05d}") for i in (0, 2, 3, 5, 6)]
    frame = read_frame(refs[1])
    depth = check_frame(frame, "here")
    np.testing.assert_allclose(frame.K_color, [[160, 0, 80], [0, 160, 60], [0, 0, 1]])
    np.testing.assert_allclose(frame.K_depth, [[32, 0, 15.6], [0, 32, 11.6], [0, 0, 1]])
    # ARKit looks along -z with y up; here z is ahead and y down.
    np.testing.assert_allclose(frame.world_from_camera, [[1, 0, 0, 2], [0, -1, 0, 2], [0, 0, -1, 3], [0, 0, 0, 1]])
    assert frame.timestamp == 102.5
    levels = np.asarray(Image.open(capture / "conf_00002.png"))
    stored = decode_depth((capture / "depth_00002.png").read_bytes())
    assert np.array_equal(depth, np.where(levels == 2, stored, 0))


def test_where_it_was_taken_is_not_stored(capture: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a phone"
    exif.get_ifd(0x8825)[1] = "N"
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    path = capture / "frame_00002.jpg"
    with Image.open(path) as image:
        image.save(path, exif=exif)
    before = path.read_bytes()
    assert b"Exif" in before
    after = without_location(before)
    assert b"Exif" not in after
    pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in (before, after)]
    assert np.array_equal(*pixels)
    frame = read_frame(scanner_app_3d.scan(capture, DEFAULT)[1])
    assert frame.color == after
    every = b"".join(members_of_frame(frame).values())
    assert b"latitude" not in every
    assert b"13.4" not in every


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("frame_00002.json", b"{", r"frame_00002.json: not JSON"),
        ("frame_00002.json", b"[]", r"frame_00002.json: holds list, wanted a JSON object"),
        ("frame_00002.json", b"{}", r"frame_00002.json: no intrinsics of 9 numbers"),
        ("frame_00002.json", b'{"intrinsics": [1, 2]}', r"intrinsics has 2 numbers, wanted 9"),
        ("frame_00002.json", b'{"intrinsics": [1,0,0,0,-1,0,0,0,1]}', r"fy is -1; a focal length below 0"),
        ("depth_00002.png", b"\x89PNG", r"depth_00002.png: depth cannot be decoded"),
        ("conf_00002.png", b"nothing", r"conf_00002.png: labels cannot be decoded"),
    ],
)
def test_what_is_damaged_is_named(capture: Path, name: str, content: bytes, message: str) -> None:
    (capture / name).write_bytes(content)
    with pytest.raises(ShardError, match=message):
        [read_frame(ref) for ref in scanner_app_3d.scan(capture, DEFAULT)]


def test_what_is_missing_is_named_or_left_out_and_counted(capture: Path, caplog: pytest.LogCaptureFixture) -> None:
    (capture / "depth_00002.png").unlink()
    with pytest.raises(ShardError, match=r"frame_00002.jpg: its depth_N.png is missing \(1 of 5 lack theirs\)"):
        scanner_app_3d.scan(capture, DEFAULT)
    with caplog.at_level(logging.WARNING):
        assert len(scanner_app_3d.scan(capture, SourceOptions(only_complete=True))) == 4
    assert "1 of 5 frames have no depth_N.png, the first is 00002" in caplog.text
    for path in capture.glob("*.jpg"):
        path.unlink()
    with pytest.raises(CallError, match="wanted the app's export All Data"):
        scanner_app_3d.scan(capture, DEFAULT)


def test_a_lost_pose_is_none_and_counted(capture: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = capture / "frame_00003.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"cameraPoseARFrame": [0] * 16}))
    with caplog.at_level(logging.WARNING):
        refs = scanner_app_3d.scan(capture, DEFAULT)
    assert [one.world_from_camera is None for one in refs] == [False, False, True, False, False]
    assert "1 of 5 poses say that tracking was lost" in caplog.text


def test_frames_come_in_the_order_of_their_numbers(capture: Path) -> None:
    for kind, suffix in (("frame", "json"), ("frame", "jpg"), ("depth", "png"), ("conf", "png")):
        shutil.copy(capture / f"{kind}_00006.{suffix}", capture / f"{kind}_100000.{suffix}")
        (capture / f"{kind}_00006.{suffix}").rename(capture / f"{kind}_20.{suffix}")
    assert [one.frame_id for one in scanner_app_3d.scan(capture, DEFAULT)][-2:] == ["20", "100000"]
