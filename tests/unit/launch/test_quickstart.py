from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from launch.quickstart import (
    OWNER_MARK,
    QuickstartData,
    find_example_frames,
    require_packed,
    smoke_config,
    take_over,
)
from shards.pack import pack
from t4p.errors import ConfigError

QUIET = Console(quiet=True)


@pytest.fixture
def raw_seven_scenes(tmp_path: Path) -> Path:
    scene = tmp_path / "raw" / "chess" / "seq-01"
    scene.mkdir(parents=True)
    for index in range(2):
        name = scene / f"frame-{index:06d}"
        Image.fromarray(np.full((480, 640, 3), 100, np.uint8)).save(f"{name}.color.png")
        Image.fromarray(np.full((480, 640), 1500, np.uint16)).save(f"{name}.depth.png")
        np.savetxt(f"{name}.pose.txt", np.eye(4))
    return tmp_path / "raw"


def test_the_repository_has_example_frames() -> None:
    assert (find_example_frames() / "rgb.txt").is_file()


def test_raw_frames_are_told_how_to_be_packed_and_then_accepted(raw_seven_scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"t4p shards pack seven-scenes {raw_seven_scenes} DST"):
        require_packed(str(raw_seven_scenes))
    packed = str(tmp_path / "packed")
    pack("seven-scenes", raw_seven_scenes, packed)
    assert require_packed(packed) == packed


def test_a_folder_that_is_nothing_we_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a packed dataset .* nor raw frames"):
        require_packed(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        require_packed(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_the_folders_of_an_earlier_quickstart_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    take_over(out, replace_shards=True, console=QUIET)
    for name in ("run/checkpoints", "shards/train", "mine"):
        (out / name).mkdir(parents=True)
    (out / "report.json").write_text("{}")
    take_over(out, replace_shards=True, console=QUIET)
    assert sorted(path.name for path in out.iterdir()) == [OWNER_MARK, "mine"]


def test_shards_that_may_be_the_input_stay(tmp_path: Path) -> None:
    take_over(tmp_path, replace_shards=True, console=QUIET)
    (tmp_path / "shards" / "train").mkdir(parents=True)
    take_over(tmp_path, replace_shards=False, console=QUIET)
    assert (tmp_path / "shards" / "train").is_dir()


def test_a_run_that_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    precious = tmp_path / "run" / "checkpoints"
    precious.mkdir(parents=True)
    with pytest.raises(ConfigError, match="was not made by a quickstart"):
        take_over(tmp_path, replace_shards=True, console=QUIET)
    assert precious.is_dir()


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        take_over(tmp_path / "file" / "out", replace_shards=True, console=QUIET)


def test_paths_reach_the_configuration_whatever_they_hold(tmp_path: Path) -> None:
    odd = "s3://bucket/with: colon, [brackets] #hash"
    config = smoke_config(QuickstartData(odd, None, 0.0), tmp_path / "a 'run'")
    assert config.data.shards == (odd,)
    assert config.data.validation_shards == ()
    assert config.run.dir == str(tmp_path / "a 'run'")
