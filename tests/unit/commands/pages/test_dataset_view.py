"""Looking into a dataset: one sample, samples from all over, as a picture and as a page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from commands.pages.dataset_view import show_dataset
from commands.pages.palette import STRUCTURE, label_colors
from commands.shards import app
from shards.errors import CallError
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.sources.options import SourceOptions
from shards.synthetic.furniture import LABEL_NAMES

TUM_KEY = "rgbd_dataset_freiburg1_rpy/1305031241.529758"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> str:
    folder = str(tmp_path_factory.mktemp("tum") / "dataset")
    pack("tum", tum_sample, folder, frames=slice(0, 1))
    return folder


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three rooms of three frames, a shard each."""
    folder = str(tmp_path_factory.mktemp("rooms") / "frames")
    pack("synthetic", "seed=6,rooms=3,frames=3,width=80,height=60", folder, shard_size_bytes=40_000)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("scenes") / "scenes")
    pack("synthetic-scenes", "seed=6,rooms=1,frames=12,width=80,height=60", folder)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def count_of(path: Path, color: np.ndarray) -> int:
    return int((pixels(path) == color).all(axis=2).sum())


def test_colour_and_depth_stand_beside_each_other(dataset: str, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert show_dataset(dataset, TUM_KEY, out, 6) == (DatasetReader(dataset).key(0, 0),)
    drawn = pixels(out)
    assert drawn.shape[1] > 1.8 * drawn.shape[0]
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 5000


def test_labels_and_their_legend_are_drawn(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    raw = make_scene(tmp_path / "raw", 1)
    for name, kind in (("color", "color.jpg"), ("depth", "depth.png")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        shutil.move(raw / f"frame-000000.{kind}", tmp_path / "mine" / name / f"0{Path(kind).suffix}")
    shutil.move(raw / "camera-intrinsics.txt", tmp_path / "mine" / "intrinsic.txt")
    (tmp_path / "mine" / "label").mkdir()
    Image.fromarray(np.repeat(np.arange(48, dtype=np.uint8) // 12, 64).reshape(48, 64)).save(
        tmp_path / "mine" / "label" / "0.png"
    )
    names = ("nothing", "chair", "table")  # and a class that has no name
    (tmp_path / "mine" / "label_names.txt").write_text("\n".join(names) + "\n")
    pack("folder", tmp_path / "mine", str(tmp_path / "d"), source_options=SourceOptions(1000.0), as_is=True)
    show_dataset(str(tmp_path / "d"), "mine/0", tmp_path / "out.png", 6)
    for color in label_colors([*names, "id 3"]):
        assert count_of(tmp_path / "out.png", color) > 1000
    show_dataset(str(tmp_path / "d"), "mine/0", tmp_path / "out.html", 6)
    page = (tmp_path / "out.html").read_text()
    assert all(f"</svg>{name}</li>" in page for name in (*names, "id 3"))


def test_boxes_that_are_announced_are_drawn(scenes: str, rooms: str, tmp_path: Path) -> None:
    reader = DatasetReader(scenes)
    boxes = reader.read_scene(0, 0).boxes
    assert boxes
    show_dataset(scenes, reader.key(0, 0), tmp_path / "scene.html", 6)
    page = (tmp_path / "scene.html").read_text()
    assert f"boxes: {len(boxes)}</figcaption>" in page
    assert all(f"</svg>{box.label}</li>" in page for box in boxes)
    frame = DatasetReader(rooms).read_frame(0, 0)
    assert frame.boxes
    show_dataset(rooms, DatasetReader(rooms).key(0, 0), tmp_path / "frame.png", 6)
    color = label_colors(LABEL_NAMES)[LABEL_NAMES.index(frame.boxes[0].label)]
    assert count_of(tmp_path / "frame.png", color) > 300


def test_a_sheet_without_a_key_shows_samples_from_all_over(rooms: str, tmp_path: Path) -> None:
    reader = DatasetReader(rooms)
    keys = [key for shard in range(reader.manifest.num_shards) for key in reader.index(shard).keys]
    assert show_dataset(rooms, None, tmp_path / "sheet.png", 3) == (keys[0], keys[4], keys[8])
    assert show_dataset(rooms, None, tmp_path / "sheet.html", 60) == tuple(keys)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<figcaption>labels</figcaption>") == len(keys)
    drawn = pixels(tmp_path / "sheet.png")
    assert drawn.shape[0] > 600
    assert count_of(tmp_path / "sheet.png", np.array(STRUCTURE["floor"])) > 1000


def test_a_wrong_key_and_a_wrong_place_are_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"no sample 'x/y' among 1; the first is rgbd_5Fdataset"):
        show_dataset(dataset, "x/y", tmp_path / "out.png", 6)
    with pytest.raises(CallError, match=r"--out is .*out.gif, wanted a name that ends in .png or .html"):
        show_dataset(dataset, None, tmp_path / "out.gif", 6)
    with pytest.raises(CallError, match=r"wanted the path of a file in a folder that exists"):
        show_dataset(dataset, TUM_KEY, tmp_path / "nowhere" / "out.png", 6)
    (tmp_path / "there.png").write_text("mine")
    with pytest.raises(CallError, match="exists already; name another file, or write over it with --force"):
        show_dataset(dataset, TUM_KEY, tmp_path / "there.png", 6)
    show_dataset(dataset, TUM_KEY, tmp_path / "there.png", 6, force=True)
    assert pixels(tmp_path / "there.png").size


def listed(*arguments: str) -> tuple[list[str], str]:
    """Keys on stdout, and what is said beside them."""
    result = CliRunner().invoke(app, ["list", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines(), result.stderr


def test_keys_are_listed_page_by_page_and_by_scene(rooms: str) -> None:
    every, said = listed(rooms)
    assert (len(every), said) == (9, "")
    first, said = listed(rooms, "--count", "4")
    assert first == every[:4]
    assert said == f"4 keys; more: t4p shards list {rooms} --skip 4 --count 4\n"
    assert listed(rooms, "--skip", "4", "--count", "4")[0] == every[4:8]
    assert listed(rooms, "--skip", "8", "--count", "1") == (every[8:], "")
    assert listed(rooms, "--all", "--count", "1") == (every, "")
    assert listed(rooms, "--scene", "room-6-00001") == (every[3:6], "")
    assert listed(rooms, "--scene", "nowhere") == ([], "no samples of scene 'nowhere'\n")
    answer = json.loads("\n".join(listed(rooms, "--scene", "room-6-00001", "--count", "2", "--json")[0]))
    assert answer == {"url": rooms, "num_samples": 9, "keys": every[3:5], "more": True}


def test_a_scene_is_named_as_its_id_was_too(dataset: str) -> None:
    escaped = listed(dataset)[0]
    assert listed(dataset, "--scene", TUM_KEY.partition("/")[0])[0] == escaped
    assert listed(dataset, "--scene", escaped[0].partition("/")[0])[0] == escaped
