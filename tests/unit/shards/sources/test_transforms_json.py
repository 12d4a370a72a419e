"""transforms.json of nerfstudio and NeRFCapture: real frames of a phone laid out as they do, and what can be wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from arkit_layouts import ArkitFrame, lay_out_nerfcapture, lay_out_nerfstudio, real_frames
from reprojection import proof

from shards.errors import CallError, ShardError
from shards.schema import check_frame
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions
from shards.sources.recognise import recognise
from shards.sources.scanner_app_3d import scan as scan_app
from shards.sources.transforms_json import scan_nerfcapture, scan_nerfstudio

DEFAULT = SourceOptions()
# y up becomes z up, as nerfstudio turns what ARKit recorded.
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0]])


def edit(root: Path, change: Callable[[dict], None]) -> None:
    fields = json.loads((root / "transforms.json").read_text())
    change(fields)
    (root / "transforms.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("layout", ["nerfcapture", "nerfstudio", "nerfstudio, turned and scaled", "nerfstudio, metres"])
def test_real_frames_are_those_of_the_app_that_recorded_them(shared_data: Path, tmp_path: Path, layout: str) -> None:
    all_data = shared_data / "3dscannerapp_corridor" / "All_Data"
    frames, root = real_frames(all_data), tmp_path / "hall"
    if layout == "nerfcapture":
        found = [read_frame(one) for one in scan_nerfcapture(lay_out_nerfcapture(frames, root), DEFAULT)]
    else:
        turned = {"applied": Z_UP, "scale": 0.37} if "scaled" in layout else {}
        lay_out_nerfstudio(frames, root, metres="metres" in layout, **turned)
        found = [read_frame(one) for one in scan_nerfstudio(root, DEFAULT)]
    other = [read_frame(one) for one in scan_app(all_data, SourceOptions(min_confidence=0))]
    assert len(found) == len(other) == 10
    for one, wanted in zip(found, other, strict=True):
        mine, theirs = (check_frame(frame, "here") / frame.depth_scale for frame in (one, wanted))
        near = theirs < (9.999 if layout == "nerfcapture" else 99)  # what its 16 bits reach
        np.testing.assert_allclose(mine[near], theirs[near], atol=1e-3)
        assert not mine[~near].any()
        np.testing.assert_allclose(one.K_depth, wanted.K_depth)
        np.testing.assert_allclose(one.world_from_camera, wanted.world_from_camera, atol=1e-5)
    agreement = proof(found)
    assert agreement["right"][0] < 0.01
    assert agreement["inverted"][0] > 5 * agreement["right"][0]
    assert agreement["flipped"][0] > 5 * agreement["right"][0]


def test_frames_come_in_the_order_of_their_numbers_whatever_the_list(made: list[ArkitFrame], tmp_path: Path) -> None:
    found = scan_nerfstudio(lay_out_nerfstudio(made * 3, tmp_path / "a"), DEFAULT)
    assert [one.frame_id for one in found] == [f"images/frame_{k}" for k in range(1, 13)]
    assert recognise(tmp_path / "a").name == "nerfstudio"


def test_pictures_may_be_named_without_their_suffix(made: list[ArkitFrame], tmp_path: Path) -> None:
    root = lay_out_nerfcapture(made, tmp_path / "a", suffix="")
    assert [one.color.name for one in scan_nerfcapture(root, DEFAULT)] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [one.timestamp for one in scan_nerfcapture(root, DEFAULT)] == [9.5, 10.5, 11.5, 12.5]
    assert recognise(root).name == "nerfcapture"


def test_common_intrinsics_count_before_those_of_a_frame(made: list[ArkitFrame], tmp_path: Path) -> None:
    root = lay_out_nerfstudio(made, tmp_path / "a")
    edit(root, lambda fields: fields.update(fl_x=160.0, fl_y=160.0))
    assert read_frame(scan_nerfstudio(root, DEFAULT)[0]).K_color[0].tolist() == [160, 0, 40]


def test_poses_without_metric_scale_are_refused_until_somebody_says_it(made: list[ArkitFrame], tmp_path: Path) -> None:
    root = lay_out_nerfstudio(made, tmp_path / "a")
    edit(root, lambda fields: [entry.update(colmap_im_id=1) for entry in fields["frames"]])
    with pytest.raises(CallError, match=r"come from COLMAP and have no metric scale.* --pose-scale"):
        scan_nerfstudio(root, DEFAULT)
    found = scan_nerfstudio(root, SourceOptions(pose_scale=0.5))
    assert [one.world_from_camera[3] for one in found] == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(k1=0.1), r"distorted \(OPENCV k1\), and a pinhole camera is wanted; undistort them"),
        (lambda f: f.update(camera_model="OPENCV_FISHEYE"), r"distorted \(OPENCV_FISHEYE"),
        (lambda f: f.pop("frames"), "has no list of frames"),
        (lambda f: f["frames"][0].pop("transform_matrix"), r"frame 0: no transform_matrix of 16 numbers"),
        (lambda f: f["frames"][0].update(transform_matrix=[1, 2]), r"transform_matrix has 2 numbers, wanted 16"),
        (lambda f: f["frames"][0].pop("fl_x"), r"frame 0: fl_x is None, wanted a number"),
        (lambda f: f["frames"][0].update(w=80.5), r"an image of 80.5x60.0 pixels"),
        (
            lambda f: f["frames"][0].update(depth_file_path="depth/none.png"),
            r"lacks .* \(1 of 4 frames do\)",
        ),
        (lambda f: [e.update(depth_path=e.pop("depth_file_path")) for e in f["frames"]], r"is it of nerfcapture\?"),
        (lambda f: f["frames"][0].update(file_path="../../x.jpg"), r"names '../../x.jpg', which is not within"),
        (lambda f: f.update(applied_scale=0), r"applied_scale is 0"),
    ],
)
def test_what_is_wrong_is_named(
    made: list[ArkitFrame], tmp_path: Path, change: Callable[[dict], None], message: str
) -> None:
    root = lay_out_nerfstudio(made, tmp_path / "a")
    edit(root, change)
    with pytest.raises(ShardError, match=message):
        scan_nerfstudio(root, DEFAULT)


def test_depth_units_of_a_capture_are_in_its_file_or_asked_for(made: list[ArkitFrame], tmp_path: Path) -> None:
    root = lay_out_nerfcapture(made, tmp_path / "a")
    assert scan_nerfcapture(root, DEFAULT)[0].depth.scale == pytest.approx(6553.5)
    edit(root, lambda fields: fields.pop("integer_depth_scale"))
    with pytest.raises(CallError, match=r"does not say its integer_depth_scale; .* --depth-scale"):
        scan_nerfcapture(root, DEFAULT)
    assert scan_nerfcapture(root, SourceOptions(depth_scale=1000.0))[0].depth.scale == 1000


def test_incomplete_frames_are_left_out_on_demand(
    made: list[ArkitFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = lay_out_nerfcapture(made, tmp_path / "a")
    (root / "images" / "2.depth.png").unlink()
    with caplog.at_level(logging.WARNING):
        found = scan_nerfcapture(root, SourceOptions(only_complete=True))
    assert [one.frame_id for one in found] == ["images/0", "images/1", "images/3"]
    assert "1 of 4 frames lack picture or depth, the first is images/2.jpg" in caplog.text


def test_what_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"no transforms.json with frames in it or below; wanted a capture"):
        scan_nerfstudio(tmp_path, DEFAULT)
