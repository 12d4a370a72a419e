"""Links, pipes and devices among raw files are refused in words; the folder that somebody names may be a link."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from shards.errors import ShardError
from shards.packing.frame_tasks import load_frame, unique_tasks
from shards.packing.pack import pack
from shards.sources import folder, seven_scenes, tum
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions
from shards.sources.raw_files import MAX_FILE_BYTES, read_bytes

OPTIONS = SourceOptions(depth_scale=1000.0)
Source = tuple[ModuleType, Path]


@pytest.fixture(params=["seven-scenes", "folder", "tum"])
def source(request: pytest.FixtureRequest, tmp_path: Path, make_scene: Callable[..., Path], tum_sample: Path) -> Source:
    """A format, and a folder of two scenes in it."""
    root = tmp_path / "raw"
    if request.param == "tum":
        shutil.copytree(tum_sample, root)
        return tum, root
    for name in ("a", "b"):
        scene = make_scene(root / name, 2)
        if request.param == "folder":
            for kind, suffix in (("color", ".jpg"), ("depth", ".png"), ("pose", ".txt")):
                (scene / kind).mkdir()
                for path in scene.glob(f"*.{kind}{suffix}"):
                    path.rename(scene / kind / (path.name.split(".")[0] + suffix))
            (scene / "camera-intrinsics.txt").rename(scene / "intrinsic.txt")
    return (folder if request.param == "folder" else seven_scenes), root


def read_all(source: Source) -> int:
    module, root = source
    tasks = unique_tasks(module.scan(root, OPTIONS))
    return len([load_frame(read_frame, "full", "png", None, task) for task in tasks])


def images(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".png"))


def to_link(path: Path) -> None:
    moved = next(folder for folder in path.parents if folder.name == "raw").parent / f"elsewhere-{path.name}"
    path.rename(moved)
    path.symlink_to(moved)


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def to_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("spoil", [to_link, to_pipe, to_device])
@pytest.mark.parametrize("which", [0, -1])
def test_an_image_that_is_no_file_is_refused_at_once(source: Source, spoil: Callable[[Path], None], which: int) -> None:
    victim = images(source[1])[which]
    spoil(victim)
    with pytest.raises(ShardError, match=rf"{victim.name}: (a symbolic link, and what it leads to|no file but a pipe)"):
        read_all(source)


def test_a_text_that_leads_elsewhere_is_refused(source: Source) -> None:
    victim = sorted(path for path in source[1].rglob("*.txt") if path.name != "groundtruth.txt")[0]
    victim.rename(source[1].parent / "outside.txt")
    victim.symlink_to(source[1].parent / "outside.txt")
    with pytest.raises(ShardError, match=rf"{victim.name}: a symbolic link"):
        read_all(source)


def test_a_folder_that_leads_elsewhere_is_refused(source: Source, tmp_path: Path) -> None:
    victim = sorted(path for path in source[1].rglob("*") if path.is_dir())[-1]
    shutil.move(victim, tmp_path / "outside")
    victim.symlink_to(tmp_path / "outside")
    with pytest.raises(ShardError, match=rf"{victim.name}: a symbolic link.*give the folder it leads to as the source"):
        read_all(source)


def test_a_link_loop_ends(source: Source) -> None:
    (source[1] / "loop").symlink_to(source[1])
    if source[0] is folder:
        (source[1] / "a" / "color" / "loop.png").symlink_to(source[1] / "a" / "color" / "loop.png")
    with pytest.raises(ShardError, match="a symbolic link"):
        read_all(source)


def test_a_link_at_the_top_is_followed(source: Source, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source[1])
    assert read_all((source[0], tmp_path / "link")) == read_all(source)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../../etc/passwd", "rgb/../../x.png", "a\x1b[31m/../x"])
def test_a_list_that_names_files_elsewhere_is_refused(tmp_path: Path, tum_sample: Path, name: str) -> None:
    shutil.copytree(tum_sample, tmp_path / "raw")
    (listed,) = (tmp_path / "raw").rglob("rgb.txt")
    *kept, last = listed.read_text().splitlines()
    listed.write_text("\n".join([*kept, f"{last.split()[0]} {name}"]))
    with pytest.raises(ShardError, match=r"rgb.txt: names '.*', which is not within") as refused:
        tum.scan(tmp_path / "raw", OPTIONS)
    assert str(refused.value).isprintable()


def test_label_names_that_lead_elsewhere_are_not_packed(tmp_path: Path, make_scene: Callable[..., Path]) -> None:
    scene = make_scene(tmp_path / "raw", 1)
    for kind, suffix in (("color", ".jpg"), ("depth", ".png")):
        (scene / kind).mkdir()
        (scene / f"frame-000000.{kind}{suffix}").rename(scene / kind / f"0{suffix}")
    (scene / "camera-intrinsics.txt").rename(scene / "intrinsic.txt")
    (scene / "label_names.txt").symlink_to("/etc/passwd")
    with pytest.raises(ShardError, match=r"label_names.txt: a symbolic link"):
        pack("folder", scene, str(tmp_path / "out"), source_options=OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_file_that_no_frame_has_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ShardError, match=rf"huge.png: {MAX_FILE_BYTES + 1} bytes, and a file of one frame has at most"):
        read_bytes(tmp_path / "huge.png")
    with pytest.raises(ShardError, match="cannot be read"):
        read_bytes(tmp_path)
