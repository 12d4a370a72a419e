"""Polycam's raw data: the real frames of another app laid out as Polycam does, and what can be wrong with an export."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from arkit_layouts import ArkitFrame, lay_out_polycam, real_frames
from reprojection import proof

from shards.errors import CallError, ShardError
from shards.schema import check_frame
from shards.sources import polycam, scanner_app_3d
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions

DEFAULT = SourceOptions()


def test_real_frames_are_those_of_the_other_app(shared_data: Path, tmp_path: Path) -> None:
    all_data = shared_data / "3dscannerapp_corridor" / "All_Data"
    lay_out_polycam(real_frames(all_data), tmp_path / "hall")
    found = [read_frame(one) for one in polycam.scan(tmp_path, DEFAULT)]
    other = [read_frame(one) for one in scanner_app_3d.scan(all_data, DEFAULT)]
    assert len(found) == len(other) == 10
    for one, wanted in zip(found, other, strict=True):
        assert one.scene_id == "hall"
        assert np.array_equal(check_frame(one, "here"), check_frame(wanted, "here"))
        np.testing.assert_allclose(one.K_depth, wanted.K_depth)
        np.testing.assert_allclose(one.K_color, wanted.K_color)
        np.testing.assert_allclose(one.world_from_camera, wanted.world_from_camera, atol=1e-6)
    agreement = proof(found)
    assert agreement["right"][1] > 0.99
    assert agreement["flipped"][1] < 0.7


def test_corrected_pictures_go_with_corrected_cameras(made: list[ArkitFrame], tmp_path: Path) -> None:
    root = lay_out_polycam(made, tmp_path / "a")
    for path in (root / "keyframes" / "cameras").iterdir():  # the others' poses are worse
        path.write_text(json.dumps(json.loads(path.read_text()) | {"t_03": 99.0}))
    refs = polycam.scan(root, DEFAULT)
    assert [one.color.parent.name for one in refs] == ["corrected_images"] * 4
    assert [one.world_from_camera[3] for one in refs] == [0, 1, 2, 3]
    shutil.rmtree(root / "keyframes" / "corrected_images")  # of large sessions there are none
    refs = polycam.scan(root, DEFAULT)
    assert [one.color.parent.name for one in refs] == ["images"] * 4
    assert [one.world_from_camera[3] for one in refs] == [99.0] * 4


def test_a_size_that_corrected_cameras_do_not_say_is_that_of_the_others(made: list[ArkitFrame], tmp_path: Path) -> None:
    refs = polycam.scan(lay_out_polycam(made, tmp_path / "a", sizes=False), DEFAULT)
    np.testing.assert_allclose(read_frame(refs[0]).K_depth, [[32, 0, 15.7], [0, 32, 11.7], [0, 0, 1]])
    assert refs[1].timestamp == 10.5


def test_depth_without_confidence_counts_and_that_is_said(
    made: list[ArkitFrame], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = lay_out_polycam(made, tmp_path / "a")
    next((root / "keyframes" / "confidence").iterdir()).unlink()
    with caplog.at_level(logging.WARNING):
        refs = polycam.scan(root, DEFAULT)
    assert "1 of 4 keyframes have no confidence, all their depth counts" in caplog.text
    kept = [(check_frame(read_frame(one), "here") > 0).mean() for one in refs]
    assert sorted(round(share, 1) for share in kept) == [0.3, 0.3, 0.3, 1.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corrected_cameras", b"{", r"json: not JSON"),
        ("corrected_cameras", b"{}", r"t_00 is None, wanted a number"),
        ("corrected_cameras", None, r"no file 9500000.json in .*corrected_cameras \(1 of 4 lack theirs\)"),
        ("depth", None, r"9500000.jpg: no file 9500000\.\* in .*depth \(1 of 4 lack theirs\)"),
        ("depth", b"no image", r"depth/9500000.png: depth cannot be decoded"),
        ("confidence", b"no image", r"confidence/9500000.png: labels cannot be decoded"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    made: list[ArkitFrame], tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    root = lay_out_polycam(made, tmp_path / "a")
    (path,) = (root / "keyframes" / name).glob("9500000.*")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ShardError, match=message):
        [read_frame(ref) for ref in polycam.scan(root, DEFAULT)]


def test_what_is_no_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="wanted Polycam's export of raw data"):
        polycam.scan(tmp_path, DEFAULT)
