"""The page of a dataset: what it is made of, for frames with and without poses and labels, and for whole scenes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from commands.pages.dataset_page import dataset_page, draw_path
from commands.pages.page import render_page
from commands.shards import app
from shards.packing.pack import pack
from shards.reader import DatasetReader


def page_of(folder: Path, kind: str, source: str | Path):
    pack(kind, source, str(folder))
    return dataset_page(DatasetReader(str(folder)), "t4p shards page")


def test_frames_are_shown_with_a_scene_paths_depth_and_labels(tmp_path: Path) -> None:
    page = page_of(tmp_path / "d", "synthetic", "seed=3,rooms=2,frames=4,width=64,height=48")
    assert page.title == "Dataset d"
    assert [tile.value for tile in page.tiles[:1]] == ["8"]
    assert [gallery.heading for gallery in page.galleries][-1] == "Paths of the camera"
    assert [picture.caption[:26] for picture in page.galleries[-1].pictures] == [
        f"room-3-0000{place}: 4 frames; the"[:26] for place in (0, 1)
    ]
    (scene,) = page.scenes
    assert scene.heading == "Scene room-3-00000"
    assert [layer.name for layer in scene.layers] == ["colour", "height"]
    assert [table.heading for table in page.tables] == ["Depth", "Labels"]
    facts = {fact.name: fact.value for fact in page.facts}
    assert facts["raw format"] == "synthetic"
    assert facts["source"] == "seed=3,rooms=2,frames=4,width=64,height=48"
    text = render_page(page)
    assert "made by this program: no terms" in text
    assert "://" not in text.replace("http://www.w3.org", "")


def test_whole_scenes_are_shown_with_their_labels(tmp_path: Path) -> None:
    page = page_of(tmp_path / "d", "synthetic-scenes", "seed=3,rooms=1,frames=6,width=64,height=48")
    (scene,) = page.scenes
    assert [layer.name for layer in scene.layers] == ["colour", "labels"]
    assert {"wall", "floor"} <= set(scene.names)
    assert [gallery.heading for gallery in page.galleries] == ["synthetic-scenes: room-3-00000"]
    assert page.tables[-1].heading == "Labels"


def test_frames_without_poses_have_no_scene_and_no_path(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    source = make_scene(tmp_path / "<b>kitchen</b>", 3)
    for path in source.glob("*.pose.txt"):
        path.unlink()
    page = page_of(tmp_path / "d", "seven-scenes", source)
    assert page.scenes == ()
    assert "Paths of the camera" not in {gallery.heading for gallery in page.galleries}
    assert "<b>kitchen" not in render_page(page)


def test_a_path_lies_as_it_was_walked() -> None:
    poses = np.tile(np.eye(4), (5, 1, 1))
    poses[:, 0, 3] = np.linspace(0, 4, 5)  # along x; up is z
    poses[:, :3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # looks along +y
    png, bar = draw_path(poses)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    rows = np.flatnonzero((pixels < 200).sum(axis=1) > 0.6 * pixels.shape[1])
    assert len(rows)
    assert abs(rows.mean() - pixels.shape[0] / 2) < 3  # one level line
    assert bar == 1


def test_the_command_writes_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pack("synthetic", "seed=3,rooms=1,frames=2,width=64,height=48", "mine")
    first, second = (CliRunner().invoke(app, ["page", "mine"]) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert "wrote mine.html: 2 frames of 1 scene(s)" in first.output
    assert (tmp_path / "mine.html").read_text().startswith("<!DOCTYPE html>")
    assert second.exit_code == 2
    assert "mine.html" in second.output
