"""SUN RGB-D as it is published: a folder a view, with boxes and labels straight from its .mat files, without MATLAB.

Each view has image/, depth/ (16 bits turned left by three, millimetres), depth_bfx/ (the same with holes filled from
neighbouring frames, which the benchmark's own point clouds are made of, and which is taken where it is there),
intrinsics.txt, extrinsics/*.txt (the rotation that levels the camera) and seg.mat. SUNRGBDMeta3DBB_v2.mat, in the
source or above it, holds the boxes. The world is what the extrinsics level: x right, y ahead, z up, the camera at its
origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from shards.errors import CallError, ShardError
from shards.schema import Matrix
from shards.sources.cameras import inverse_of_rigid, numbers16, product, read_camera
from shards.sources.frame_files import BoxNumbers, DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import (
    COLOR_SUFFIXES,
    files_by_stem,
    list_names,
    name_of,
    natural_order,
    require_folder,
    walk_folders,
)
from shards.sources.raw_text import read_matrix
from shards.sources.sunrgbd_mat import LABELS, META_FILE, ViewBoxes, read_meta

NAME = "sunrgbd"
_DEPTH_SCALE = 1000.0
_DEPTHS = ("depth_bfx", "depth")
_META_PLACES = ("", "Metadata", "SUNRGBDtoolbox/Metadata", "SUNRGBDMeta")


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every view below `root`, in natural order of its path.

    Raises:
        CallError: no such folder, or no view in it.
        ShardError: a view lacks a file, or the boxes cannot be read.
    """
    require_folder(root)
    chosen = options.chosen_scenes()
    views = [
        folder for folder, names in walk_folders(root) if "intrinsics.txt" in names and (folder / "image").is_dir()
    ]
    if not views:
        raise CallError(
            f"{root}: no view of SUN RGB-D in it or below; wanted folders with image/, depth/ and intrinsics.txt"
        )
    boxes = _find_boxes(root)
    frames = []
    for folder in sorted(views, key=lambda path: natural_order(path.as_posix())):
        scene_id = name_of(folder) if folder == root else folder.relative_to(root).as_posix()
        if scene_id in chosen:
            frames.append(_scan_view(folder, scene_id, boxes, options))
    return tuple(frames)


def label_names(root: Path) -> tuple[str, ...]:
    """The benchmark's 37 classes, where a view has labels."""
    return LABELS if any("seg.mat" in names for _, names in walk_folders(root)) else ()


def _scan_view(
    folder: Path, scene_id: str, boxes: Mapping[str, ViewBoxes] | None, options: SourceOptions
) -> FrameFiles:
    color = _only_file(folder / "image", COLOR_SUFFIXES)
    depths = next((folder / name for name in _DEPTHS if list_names(folder / name)), folder / _DEPTHS[-1])
    camera = read_camera(options.intrinsics or folder / "intrinsics.txt")
    world_from_camera = level(_tilt(folder))
    return FrameFiles(
        dataset=NAME,
        scene_id=scene_id,
        frame_id=color.stem,
        color=color,
        depth=DepthFiles(_only_file(depths, (".png",)), options.depth_scale or _DEPTH_SCALE, "turned"),
        color_camera=camera,
        depth_camera=camera,
        world_from_camera=numbers16(world_from_camera),
        semantic=folder / "seg.mat" if (folder / "seg.mat").is_file() else None,
        labels_coding="sunrgbd",
        boxes=None if boxes is None else _boxes_of(folder, boxes, world_from_camera),
    )


def level(tilt: Matrix) -> Matrix:
    """(4, 4) world from camera of a view whose extrinsics are (3, 3) `tilt`: from camera to levelled camera axes.

    What is x right, y down, z ahead there is x right, y ahead, z up in the world.
    """
    matrix = np.eye(4)
    matrix[:3, :3] = tilt[0], tilt[2], -tilt[1]
    return matrix


def camera_boxes(boxes: ViewBoxes, world_from_camera: Matrix) -> tuple[BoxNumbers, ...]:
    """The boxes of a view, which are annotated in its world, in its camera's frame."""
    camera_from_world = inverse_of_rigid(world_from_camera)
    return tuple(
        BoxNumbers(label, tuple(product(camera_from_world, np.reshape(pose, (4, 4))).ravel().tolist()), size)
        for label, pose, size in boxes
    )


def _tilt(folder: Path) -> Matrix:
    """(3, 3) of the newest file of extrinsics: their names are times."""
    names = [name for name in list_names(folder / "extrinsics") if name.endswith(".txt")]
    if not names:
        raise ShardError(
            f"{folder / 'extrinsics'}: no .txt in it, wanted the rotation that levels the camera; restore it"
        )
    path = folder / "extrinsics" / names[-1]
    matrix = read_matrix(path)
    if matrix.shape not in ((3, 3), (3, 4)):
        raise ShardError(f"{path}: found {matrix.shape[0]}x{matrix.shape[1]} numbers, wanted 3x3 or 3x4")
    return np.ascontiguousarray(matrix[:, :3])


def _only_file(folder: Path, suffixes: tuple[str, ...]) -> Path:
    files = list(files_by_stem(folder, suffixes).files.values())
    if len(files) != 1:
        raise ShardError(
            f"{folder}: found {[path.name for path in files] or 'no file'}, wanted one {' or '.join(suffixes)}; "
            "restore the view, or remove its folder"
        )
    return files[0]


def _find_boxes(root: Path) -> Mapping[str, ViewBoxes] | None:
    """The boxes of every view by its path, from the file in the source or in a folder above it; None without one."""
    for folder in (root.absolute(), *root.absolute().parents):
        for place in _META_PLACES:
            if (path := folder / place / META_FILE).is_file():
                return read_meta(path)
    return None


def _boxes_of(folder: Path, boxes: Mapping[str, ViewBoxes], world_from_camera: Matrix) -> tuple[BoxNumbers, ...]:
    """Those of a view, which the annotation names by its path below SUNRGBD/; none where it does not name it."""
    parts = folder.absolute().parts
    names = ("/".join(parts[start:]) for start in range(len(parts)))
    return camera_boxes(next((boxes[name] for name in names if name in boxes), ()), world_from_camera)
