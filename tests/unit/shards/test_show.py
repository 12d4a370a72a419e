"""A picture of a sample."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.errors import CallError, ShardError
from shards.packing.pack import pack
from shards.show import show


@pytest.fixture
def dataset(tmp_path: Path, tum_sample: Path) -> str:
    pack("tum", tum_sample, str(tmp_path / "dataset"), frames=slice(0, 1))
    return str(tmp_path / "dataset")


def test_colour_and_depth_are_drawn(dataset: str, tmp_path: Path) -> None:
    frame = show(dataset, "rgbd_dataset_freiburg1_rpy/1305031241.529758", tmp_path / "new" / "out.png")
    assert frame.frame_id == "1305031241.529758"
    with Image.open(tmp_path / "new" / "out.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 2 * pixels.shape[0]  # two panels
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000


def test_labels_add_panels(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    raw = make_scene(tmp_path / "raw", 1)
    for name, kind in (("color", "color.jpg"), ("depth", "depth.png")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        shutil.move(raw / f"frame-000000.{kind}", tmp_path / "mine" / name / f"0{Path(kind).suffix}")
    shutil.move(raw / "camera-intrinsics.txt", tmp_path / "mine" / "intrinsic.txt")
    (tmp_path / "mine" / "label").mkdir()
    Image.fromarray(np.repeat(np.arange(48, dtype=np.uint8) // 12, 64).reshape(48, 64)).save(
        tmp_path / "mine" / "label" / "0.png"
    )
    (tmp_path / "mine" / "label_names.txt").write_text("nothing\nchair\ntable\n")
    pack("folder", tmp_path / "mine", str(tmp_path / "d"), depth_scale=1000.0)
    show(str(tmp_path / "d"), "mine/0", tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 3 * image.height


def test_a_wrong_key_and_a_wrong_place_are_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"no sample 'x/y' among 1; the first is rgbd_5Fdataset"):
        show(dataset, "x/y", tmp_path / "out.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot be written .*; choose another --out"):
        show(dataset, "rgbd_dataset_freiburg1_rpy/1305031241.529758", tmp_path / "file" / "out.png")
