"""Your own frames: color/, depth/, and where there are any pose/, label/, instance/, with one file of intrinsics.

Files belong together by their name without suffix. Poses are 4x4 camera to world, OpenCV axes, metres. Each scene is
such a folder; the folder given is a scene or holds scenes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.images import BrokenImageError, decode_any_depth
from shards.sources.cameras import Camera, read_camera, read_poses
from shards.sources.complete import complete_stems, present_files
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import (
    COLOR_SUFFIXES,
    DEPTH_SUFFIXES,
    files_by_stem,
    list_names,
    name_of,
    read_bytes,
    require_folder,
    require_no_link,
)
from shards.sources.raw_text import read_matrix, read_text

NAME = "folder"
_DEPTH_SUFFIXES = (*DEPTH_SUFFIXES, ".npy")
# One K for both images, or one each. The first name found counts; the later ones are those of ScanNet's exports.
_SHARED_INTRINSICS = ("intrinsic.txt", "intrinsics.txt", "camera-intrinsics.txt")
_COLOR_INTRINSICS = ("intrinsic_color.txt", "intrinsics_color.txt", "intrinsic/intrinsic_color.txt")
_DEPTH_INTRINSICS = ("intrinsic_depth.txt", "intrinsics_depth.txt", "intrinsic/intrinsic_depth.txt")
# ScanNet's exports have these beside the intrinsics, the identity in most scenes.
_EXTRINSICS = tuple(f"{folder}extrinsic_{name}.txt" for folder in ("", "intrinsic/") for name in ("color", "depth"))
_SATURATED = 65535
_LABEL_NAMES_FILE = "label_names.txt"

_logger = logging.getLogger(__name__)


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every frame of the scene, or of the scenes, in `root`, in natural order of names.

    Raises:
        CallError: no such folder, no scene in it, or no depth scale given.
        ShardError: colour without depth or the reverse, no intrinsics, or two cameras that do not coincide.
    """
    require_folder(root)
    if options.depth_scale is None:
        raise CallError(
            f"{root}: the folder format needs the depth units per metre: --depth-scale 1000 for millimetres, 5000 for "
            "TUM-like depth"
        )
    scenes = [root] if _is_scene(root) else [root / name for name in list_names(root) if _is_scene(root / name)]
    for scene in scenes:
        if scene != root:
            require_no_link(scene)
    chosen = options.chosen_scenes()
    frames = [frame for scene in scenes if name_of(scene) in chosen for frame in _scan_scene(scene, options)]
    if not frames:
        raise CallError(f"{root}: no frame found; wanted color/ and depth/ in it, or scene folders that have them")
    return tuple(frames)


def label_names(root: Path) -> tuple[str, ...]:
    """Class names by id, from the lines of label_names.txt in `root`; empty without that file.

    Raises:
        ShardError: it lies in a scene of `root` instead, where it would be missed.
    """
    path = root / _LABEL_NAMES_FILE
    if path.is_file():
        return tuple(line.strip() for line in read_text(path).splitlines())
    if lower := next((name for name in list_names(root) if (root / name / _LABEL_NAMES_FILE).is_file()), None):
        raise ShardError(
            f"{root / lower / _LABEL_NAMES_FILE}: lies in a scene, and one list holds for all of a dataset; move it to "
            f"{path}"
        )
    return ()


def _is_scene(folder: Path) -> bool:
    found = [name for name in ("color", "depth") if (folder / name).is_dir()]
    for name in (*found, *(("pose", "label", "instance") if found else ())):
        require_no_link(folder / name)
    if len(found) == 1:
        raise ShardError(
            f"{folder}: has a folder {found[0]}/ and no {'depth' if found == ['color'] else 'color'}/; a scene needs "
            "both: restore the other, or remove this one"
        )
    return bool(found)


def _scan_scene(scene: Path, options: SourceOptions) -> list[FrameFiles]:
    assert options.depth_scale is not None
    colors = files_by_stem(scene / "color", COLOR_SUFFIXES)
    depths = files_by_stem(scene / "depth", _DEPTH_SUFFIXES)
    stems = complete_stems(colors, depths, options.only_complete)
    poses = read_poses(_optional(scene / "pose", ".txt", stems), scene / "pose")
    semantics = _optional(scene / "label", ".png", stems)
    instances = _optional(scene / "instance", ".png", stems)
    scene_id = name_of(scene)
    _require_one_camera(scene)
    if stems:
        _warn_of_saturation(depths.files[stems[0]])
    color_camera = _camera(scene, _COLOR_INTRINSICS + _SHARED_INTRINSICS, options)
    depth_camera = _camera(scene, _DEPTH_INTRINSICS + _SHARED_INTRINSICS, options)
    return [
        FrameFiles(
            dataset=NAME,
            scene_id=scene_id,
            frame_id=stem,
            color=colors.files[stem],
            depth=DepthFiles(
                depths.files[stem],
                options.depth_scale,
                "npy" if depths.files[stem].suffix.lower() == ".npy" else "image",
            ),
            color_camera=color_camera,
            depth_camera=depth_camera,
            world_from_camera=poses.get(stem),
            semantic=semantics.get(stem),
            instance=instances.get(stem),
            labels_from=options.labels_from,
        )
        for stem in stems
    ]


def _optional(folder: Path, suffix: str, stems: Sequence[str]) -> dict[str, Path]:
    return present_files(files_by_stem(folder, (suffix,)), stems, "file here") if folder.is_dir() else {}


def _require_one_camera(scene: Path) -> None:
    for path in (scene / name for name in _EXTRINSICS):
        if path.is_file() and not np.array_equal(read_matrix(path), np.eye(4)):
            raise ShardError(
                f"{path}: not the 4x4 identity, and this format takes both images as of one camera; register "
                "the depth images to the colour camera, or remove the file to neglect it"
            )


def _warn_of_saturation(path: Path) -> None:
    """Look at one image of a scene: what it uses for "no reading", the others use."""
    try:
        depth = decode_any_depth(read_bytes(path))
    except BrokenImageError:
        return  # packing says so, with the name of the frame
    if count := np.count_nonzero(depth == _SATURATED):
        _logger.warning(
            "%s: %d pixels are %d, often a mark for no reading, and are packed as a distance; set them to 0",
            shown(path),
            count,
            _SATURATED,
        )


def _camera(scene: Path, names: tuple[str, ...], options: SourceOptions) -> Camera:
    if options.intrinsics is not None:
        return read_camera(options.intrinsics)
    for name in names:
        if (scene / name).is_file():
            return read_camera(scene / name)
    raise ShardError(
        f"{scene}: no intrinsics; wanted a 3x3 or 4x4 matrix in pixels in one of {', '.join(names)}, or in the file of "
        "--intrinsics"
    )
