"""SUN RGB-D as VoteNet's preparation exports it: points instead of a depth image, boxes as lines of text.

Folders image/N.jpg, depth/N.mat (`instance`: x right, y ahead, z up in metres, levelled, then colour), calib/N.txt
(the rotation from camera to world axes and K, both column by column), label/N.txt (or label_v1/). The points lie on
pixels of the image: the depth image is made of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shards.errors import CallError, ShardError
from shards.schema import Matrix
from shards.sources.cameras import Camera, inverse_of_rigid, numbers16, pinhole, read_camera
from shards.sources.complete import complete_stems
from shards.sources.frame_files import BoxNumbers, DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import COLOR_SUFFIXES, files_by_stem, require_folder, walk_folders
from shards.sources.raw_text import content_lines, read_matrix, read_text
from shards.sources.sunrgbd import camera_boxes
from shards.sources.sunrgbd_mat import ViewBox

NAME = "sunrgbd-votenet"
_DEPTH_SCALE = 1000.0
_SIGNS = ("image", "depth", "calib")
_LABELS = ("label", "label_v2", "label_v1")


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every view below `root`, in natural order; each is a scene of its own.

    Raises:
        CallError: no such folder, or no view in it.
        ShardError: a view lacks a file, or one is malformed.
    """
    require_folder(root)
    folders = [folder for folder, _ in walk_folders(root) if all((folder / name).is_dir() for name in _SIGNS)]
    if not folders:
        raise CallError(
            f"{root}: no {', '.join(f'{name}/' for name in _SIGNS)} in it or below; wanted VoteNet's export"
        )
    chosen = options.chosen_scenes()
    frames = []
    for folder in folders:
        colors = files_by_stem(folder / "image", COLOR_SUFFIXES)
        depths = files_by_stem(folder / "depth", (".mat",))
        for stem in complete_stems(colors, depths, options.only_complete):
            if stem in chosen or stem.lstrip("0") in chosen:  # its lists of splits do not pad
                frames.append(_scan_view(folder, stem, colors.files[stem], depths.files[stem], options))
    return tuple(frames)


def _scan_view(folder: Path, stem: str, color: Path, points: Path, options: SourceOptions) -> FrameFiles:
    world_from_camera, camera = _read_calibration(folder / "calib" / f"{stem}.txt")
    if options.intrinsics is not None:
        camera = read_camera(options.intrinsics)
    labels = next((path for name in _LABELS if (path := folder / name / f"{stem}.txt").is_file()), None)
    return FrameFiles(
        dataset=NAME,
        scene_id=stem,
        frame_id=stem,
        color=color,
        depth=DepthFiles(
            points,
            options.depth_scale or _DEPTH_SCALE,
            "sunrgbd_points",
            camera_from_points=tuple(inverse_of_rigid(world_from_camera).ravel().tolist()),
        ),
        color_camera=camera,
        depth_camera=camera,
        world_from_camera=numbers16(world_from_camera),
        boxes=None if labels is None else _read_boxes(labels, world_from_camera),
    )


def _read_calibration(path: Path) -> tuple[Matrix, Camera]:
    """World from camera (4, 4), and K; pixels are counted from 1 there."""
    numbers = read_matrix(path)
    if numbers.shape != (2, 9):
        raise ShardError(f"{path}: found {numbers.shape[0]}x{numbers.shape[1]} numbers, wanted two lines of nine")
    level_from_camera, K = (row.reshape(3, 3).T for row in numbers)
    matrix = np.eye(4)
    # Both sides of it have z up: of a camera, that is minus its y.
    right, ahead, up = level_from_camera.T
    matrix[:3, :3] = np.stack([right, -up, ahead], axis=1)
    return matrix, pinhole(K[0, 0], K[1, 1], K[0, 2] - 1, K[1, 2] - 1)


def _read_boxes(path: Path, world_from_camera: Matrix) -> tuple[BoxNumbers, ...]:
    """Lines of: class, 2D box, centre, half width, half length, half height, direction of the length (x, y)."""
    boxes: list[ViewBox] = []
    for number, line in content_lines(read_text(path)):
        label, *rest = line.split()
        try:
            values = [float(one) for one in rest]
            x, y, z, width, length, height, ahead_x, ahead_y = values[4:12]
        except ValueError as error:
            raise ShardError(
                f"{path}, line {number}: {error}; wanted a class, four numbers of the 2D box and eight of the 3D box"
            ) from error
        norm = np.hypot(ahead_x, ahead_y) or 1.0
        cos, sin = ahead_x / norm, ahead_y / norm
        matrix = np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, z], [0, 0, 0, 1]])
        boxes.append((label, tuple(matrix.ravel().tolist()), (2 * abs(length), 2 * abs(width), 2 * abs(height))))
    return camera_boxes(tuple(boxes), world_from_camera)
