from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from commands.quickstart.quickstart import (
    OWNER_MARK,
    QuickstartData,
    RawFrames,
    check_raw,
    find_data,
    pack_raw,
    quickstart,
    smoke_config,
    take_over,
)
from launch.errors import LaunchError
from shards.errors import ShardError
from shards.reader import DatasetReader
from t4p.config.tasks import PretrainConfig
from t4p.errors import ConfigError

QUIET = Console(quiet=True)


@pytest.fixture
def raw_seven_scenes(tmp_path: Path) -> Path:
    scene = tmp_path / "raw" / "chess" / "seq-01"
    scene.mkdir(parents=True)
    for index in range(3):
        name = scene / f"frame-{index:06d}"
        Image.fromarray(np.full((480, 640, 3), 100, np.uint8)).save(f"{name}.color.png")
        Image.fromarray(np.full((480, 640), 1500, np.uint16)).save(f"{name}.depth.png")
        np.savetxt(f"{name}.pose.txt", np.eye(4))
    return tmp_path / "raw"


def test_raw_frames_of_a_known_layout_are_found_and_packed_with_some_held_out(
    raw_seven_scenes: Path, tmp_path: Path
) -> None:
    raw = find_data(str(raw_seven_scenes))
    assert raw == RawFrames("seven-scenes", raw_seven_scenes)
    check_raw(raw, tmp_path / "shards")
    packed = pack_raw(raw, tmp_path / "shards")
    train, validation = DatasetReader(packed.shards), DatasetReader(str(packed.validation_shards))
    assert (train.num_samples, validation.num_samples) == (2, 1)
    assert find_data(packed.shards) == packed.shards


def test_a_quickstart_on_raw_frames_trains_on_their_shards(
    raw_seven_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop_here(config: PretrainConfig, num_workers: int, console: Console) -> None:
        seen.append(config.data)
        raise LaunchError("far enough")

    monkeypatch.setattr("commands.quickstart.quickstart.launch_training", stop_here)
    out = tmp_path / "out"
    for _ in range(2):  # the second replaces what the first packed
        with pytest.raises(LaunchError, match="far enough"):
            quickstart(str(raw_seven_scenes), out)
    data = seen[-1]
    assert data.shards == (str(out / "shards" / "train"),)
    assert data.validation_shards == (str(out / "shards" / "validation"),)
    assert [DatasetReader(url).num_samples for url in (*data.shards, *data.validation_shards)] == [2, 1]


def test_a_layout_that_needs_options_is_not_guessed_at(tmp_path: Path) -> None:
    for name in ("color", "depth"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((48, 64), 100, np.uint16)).save(tmp_path / name / "0.png")
    (tmp_path / "intrinsic.txt").write_text("50 0 32\n0 50 24\n0 0 1\n")
    with pytest.raises(ConfigError, match=r"nor raw frames .*`t4p shards pack` packs them"):
        find_data(str(tmp_path))


def test_raw_frames_that_would_be_replaced_or_are_too_few_are_refused(raw_seven_scenes: Path, tmp_path: Path) -> None:
    raw = RawFrames("seven-scenes", raw_seven_scenes)
    with pytest.raises(ConfigError, match=r"lies in .* which a quickstart replaces"):
        check_raw(raw, tmp_path)
    for file in raw_seven_scenes.rglob("frame-000002.*"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"raw: 2 frame\(s\) \(seven-scenes\); a quickstart needs at least 3"):
        check_raw(raw, tmp_path / "shards")


def test_what_is_wrong_with_raw_frames_is_said(raw_seven_scenes: Path) -> None:
    next(raw_seven_scenes.rglob("frame-000001.depth.png")).unlink()
    with pytest.raises(ShardError, match=r"no file frame-000001\.depth\.\* in"):
        find_data(str(raw_seven_scenes))


def test_a_folder_that_is_nothing_we_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a packed dataset .* nor raw frames"):
        find_data(str(tmp_path))
    with pytest.raises(ConfigError, match="no such folder"):
        find_data(str(tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_the_folders_of_an_earlier_quickstart_are_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    take_over(out, replace_shards=True, console=QUIET)
    for name in ("run/checkpoints", "shards/train", "scratch", "finetuned", "mine"):
        (out / name).mkdir(parents=True)
    (out / "report.json").write_text("{}")
    take_over(out, replace_shards=True, console=QUIET)
    assert sorted(path.name for path in out.iterdir()) == [OWNER_MARK, "mine"]


def test_shards_that_may_be_the_input_stay(tmp_path: Path) -> None:
    take_over(tmp_path, replace_shards=True, console=QUIET)
    (tmp_path / "shards" / "train").mkdir(parents=True)
    take_over(tmp_path, replace_shards=False, console=QUIET)
    assert (tmp_path / "shards" / "train").is_dir()


def test_shards_that_are_not_ours_never_become_ours(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for replace_shards in (False, True):
        with pytest.raises(ConfigError, match="shards exists and was not made by a quickstart"):
            take_over(tmp_path, replace_shards, console=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_run_that_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    precious = tmp_path / "run" / "checkpoints"
    precious.mkdir(parents=True)
    with pytest.raises(ConfigError, match="was not made by a quickstart"):
        take_over(tmp_path, replace_shards=True, console=QUIET)
    assert precious.is_dir()


def test_a_report_that_is_not_ours_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"report\.html exists and was not made by a quickstart"):
        take_over(tmp_path, replace_shards=True, console=QUIET)
    assert (tmp_path / "report.html").read_text() == "mine"


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        take_over(tmp_path / "file" / "out", replace_shards=True, console=QUIET)


def test_paths_reach_the_configuration_whatever_they_hold(tmp_path: Path) -> None:
    odd = "s3://bucket/with: colon, [brackets] #hash"
    config = smoke_config(QuickstartData(odd, None), tmp_path / "a 'run'")
    assert config.data.shards == (odd,)
    assert config.data.validation_shards == ()
    assert config.run.dir == str(tmp_path / "a 'run'")
