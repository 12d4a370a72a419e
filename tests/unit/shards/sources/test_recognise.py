"""A folder is recognised by its names, or told what is missing of the layouts that it nearly has."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards.errors import CallError
from shards.sources.formats import FORMATS
from shards.sources.recognise import look_at, recognise


def lay_out(root: Path, names: list[str]) -> Path:
    """Empty files and folders (their names end in "/")."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    return root


def test_every_format_of_files_has_signs_and_says_how_it_was_tried() -> None:
    assert all(one.signs for one in FORMATS)
    assert all(one.tried.startswith("on ") for one in FORMATS)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["frame-000000.color.jpg", "frame-000000.depth.png"], "seven-scenes"),
        (["chess/seq-01/frame-000000.color.png", "chess/seq-01/frame-000000.depth.png"], "seven-scenes"),
        (["rgb.txt", "depth.txt", "rgb/1.png", "depth/1.png"], "tum"),
        (["freiburg1_desk/rgb.txt", "freiburg1_desk/depth.txt", "freiburg1_desk/depth/", "README"], "tum"),
        (["frame_00000.json", "frame_00000.jpg", "depth_00000.png", "conf_00000.png"], "3d-scanner-app"),
        (
            ["hall/All_Data/frame_00000.json", "hall/All_Data/frame_00000.jpg", "hall/All_Data/depth_00000.png"],
            "3d-scanner-app",
        ),
        (["kv2/a/image/1.jpg", "kv2/a/depth/1.png", "kv2/a/extrinsics/1.txt", "kv2/a/intrinsics.txt"], "sunrgbd"),
        (["image/1.jpg", "depth/1.mat", "calib/1.txt", "label/1.txt"], "sunrgbd-votenet"),
        (["scans/scene0000_00/scene0000_00.sens", "scans/scene0000_00/scene0000_00.txt"], "scannet-sens"),
        (["keyframes/images/1.jpg", "keyframes/cameras/1.json", "keyframes/depth/1.png", "raw.glb"], "polycam"),
        (["color/0.jpg", "depth/0.png"], "folder"),
        (["a/color/0.jpg", "a/depth/0.png", "b/color/0.jpg", "b/depth/0.png"], "folder"),
        (["a/color/0.jpg", "a/depth/0.png", "a/label/0.png", "label_names.txt"], "folder"),
    ],
)
def test_a_layout_is_recognised_at_any_depth(tmp_path: Path, names: list[str], found: str) -> None:
    assert recognise(lay_out(tmp_path, names)).name == found
    assert recognise(lay_out(tmp_path / "in" / "another", names)).name == found


@pytest.mark.parametrize(
    ("names", "near"),
    [
        (["rgb.txt", "rgb/1.png"], r"nearly tum, but .* has no depth.txt"),
        (["color/0.jpg"], r"nearly folder, but .* has no depth/"),
        (["a/depth/0.png"], r"nearly folder, but .*/a has no color/"),
        (["kitchen/frame-000000.depth.png"], r"nearly seven-scenes, but .*kitchen has no \*.color"),
    ],
)
def test_a_near_miss_says_what_is_missing(tmp_path: Path, names: list[str], near: str) -> None:
    with pytest.raises(CallError, match=rf"in no layout that is known \(.*{near}"):
        recognise(lay_out(tmp_path, names))


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["photos/1.jpg", "photos/2.jpg"], ["._color/", ".depth/"]])
def test_what_is_no_rgbd_data_is_said_to_be_none(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(CallError, match=r"in no layout that is known; `t4p shards formats` lists the layouts"):
        recognise(lay_out(tmp_path, names))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="nowhere: no such file or folder"):
        look_at(tmp_path / "nowhere")
