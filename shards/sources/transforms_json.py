"""transforms.json, as nerfstudio and NeRFCapture (and instant-ngp) write it, with depth images.

Cameras have OpenGL's axes (x right, y up, looking along -z). Intrinsics stand once for all frames or with each; where
both do, the common ones count, as in nerfstudio. Depth belongs to the picture and may be smaller: K is scaled to it.

nerfstudio: `depth_file_path`, 16-bit millimetres (another unit is an option of its loader, not in the file) or a NumPy
file of metres; world z up. `applied_transform` and `applied_scale` are in the poses already and are taken out again, so
that these are metric as the depth is. NeRFCapture: `depth_path`, of which `integer_depth_scale` is metres a unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.sources.arkit import number_of, numbers_of, opencv_pose, read_fields
from shards.sources.cameras import (
    Camera,
    Numbers16,
    pinhole,
    read_camera,
    require_focal,
    size_of,
    warn_of_lost_tracking,
)
from shards.sources.complete import warn_of_lost
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import COLOR_SUFFIXES, beside, name_of, natural_order, require_folder, walk_folders

NERFSTUDIO, NERFCAPTURE = "nerfstudio", "nerfcapture"
_FILE = "transforms.json"
_DEPTH_KEYS = {NERFSTUDIO: "depth_file_path", NERFCAPTURE: "depth_path"}
_MILLIMETRES = 1000.0
_SATURATED = 65535  # of a capture's depth: so far or farther
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_STRAIGHT = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE")


def scan(name: str, root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every frame of the transforms.json in `root` or below, in natural order of file names.

    Args:
        name: of the two layouts.

    Raises:
        CallError: no such folder, or no such file with frames in it.
        ShardError: a file is damaged or missing, pictures are distorted, or poses have no metric scale.
    """
    require_folder(root)
    chosen = options.chosen_scenes()
    frames = [
        frame
        for folder, names in walk_folders(root)
        if _FILE in names and name_of(folder) in chosen
        for frame in _scan_file(name, folder, options)
    ]
    if not frames:
        raise CallError(f"{root}: no {_FILE} with frames in it or below; wanted a capture of {name}")
    return tuple(frames)


scan_nerfstudio, scan_nerfcapture = partial(scan, NERFSTUDIO), partial(scan, NERFCAPTURE)


def _scan_file(name: str, folder: Path, options: SourceOptions) -> list[FrameFiles]:
    path, key = folder / _FILE, _DEPTH_KEYS[name]
    fields = read_fields(path)
    listed = _listed(fields, path)
    found = [(entry, color, depth) for entry in listed for color, depth in [_files(entry, key, folder, path)]]
    lacking = [str(entry.get("file_path")) for entry, color, depth in found if color is None or depth is None]
    if lacking and not options.only_complete:
        other = NERFCAPTURE if name == NERFSTUDIO else NERFSTUDIO
        named = any(_DEPTH_KEYS[other] in entry for entry in listed)
        hint = f"; its frames have {_DEPTH_KEYS[other]}: is it of {other}?" if named else ""
        raise ShardError(
            f"{path}: frame {shown(lacking[0])} lacks its picture, or the depth image that {key} names "
            f"({len(lacking)} of {len(listed)} frames do); record with depth, or take what is complete with "
            f"--only-complete{hint}"
        )
    warn_of_lost(path, "frames lack picture or depth", lacking, len(listed))
    scale = _depth_scale(name, fields, options, path)
    told = None if options.intrinsics is None else read_camera(options.intrinsics)
    frames = []
    for place, (entry, color, depth) in enumerate(found):
        if color is None or depth is None:
            continue
        where = f"{path}, frame {place}"
        camera = told or _camera(fields, entry, where)
        frames.append(
            FrameFiles(
                dataset=name,
                scene_id=name_of(folder),
                frame_id=color.relative_to(folder).with_suffix("").as_posix(),
                color=color,
                depth=DepthFiles(
                    depth,
                    scale,
                    "npy" if depth.suffix.lower() == ".npy" else "image",
                    no_reading=_SATURATED if name == NERFCAPTURE else 0,
                ),
                color_camera=camera,
                depth_camera=camera,
                world_from_camera=_pose(fields, entry, options.pose_scale, where),
                timestamp=number_of(entry, "timestamp", where) if "timestamp" in entry else None,
            )
        )
    warn_of_lost_tracking({frame.frame_id: frame.world_from_camera for frame in frames}, path)
    return sorted(frames, key=lambda frame: natural_order(frame.frame_id))


def _listed(fields: Mapping[str, Any], path: Path) -> Sequence[Mapping[str, Any]]:
    listed = fields.get("frames")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ShardError(f"{path}: has no list of frames; export the capture again")
    return listed


def _files(entry: Mapping[str, Any], key: str, folder: Path, path: Path) -> tuple[Path | None, Path | None]:
    """The picture, whose name may lack its suffix, and the depth image of a frame; None for what is not there."""
    names = [entry.get("file_path"), entry.get(key)]
    color, depth = (beside(folder, one, str(path)) if isinstance(one, str) and one else None for one in names)
    if color is not None and not color.is_file():
        named = (color.parent / f"{color.name}{suffix}" for suffix in COLOR_SUFFIXES)
        color = next((one for one in named if one.is_file()), None)
    return color, depth if depth is not None and depth.is_file() else None


def _depth_scale(name: str, fields: Mapping[str, Any], options: SourceOptions, path: Path) -> float:
    """Units per metre."""
    if options.depth_scale is not None:
        return options.depth_scale
    if name == NERFSTUDIO:
        return _MILLIMETRES
    if "integer_depth_scale" not in fields:
        raise CallError(f"{path}: does not say its integer_depth_scale; give the depth units per metre: --depth-scale")
    unit = number_of(fields, "integer_depth_scale", str(path))
    if not unit > 0:
        raise ShardError(f"{path}: integer_depth_scale is {unit:g}, wanted metres a unit; give --depth-scale")
    return 1 / unit


def _camera(fields: Mapping[str, Any], entry: Mapping[str, Any], where: str) -> Camera:
    """The common numbers, else those of the frame."""
    both = {**entry, **fields}
    bent = [key for key in _DISTORTION if isinstance(both.get(key), int | float) and abs(both[key]) > 1e-9]
    if bent or both.get("camera_model", _STRAIGHT[0]) not in _STRAIGHT:
        raise ShardError(
            f"{where}: its pictures are distorted ({both.get('camera_model', '')} {', '.join(bent)}), and a pinhole "
            "camera is wanted; undistort them (COLMAP's image_undistorter), or give their K with --intrinsics"
        )
    fx = number_of(both, "fl_x", where)
    fy = number_of(both, "fl_y", where) if "fl_y" in both else fx
    require_focal(fx, fy, where)
    size = size_of(number_of(both, "w", where), number_of(both, "h", where), where)
    return pinhole(fx, fy, number_of(both, "cx", where), number_of(both, "cy", where), size)


def _pose(
    fields: Mapping[str, Any], entry: Mapping[str, Any], pose_scale: float | None, where: str
) -> Numbers16 | None:
    matrix = np.reshape(numbers_of(entry, "transform_matrix", 16, where), (4, 4))
    if "colmap_im_id" in entry and pose_scale is None:
        raise CallError(
            f"{where}: its poses come from COLMAP and have no metric scale, while its depth has one; give the metres "
            "of one of their units with --pose-scale"
        )
    unit = number_of(fields, "applied_scale", where) if "applied_scale" in fields else 1.0
    if unit == 0:
        raise ShardError(f"{where}: applied_scale is 0; export the capture again")
    matrix[:3, 3] *= (1.0 if pose_scale is None else pose_scale) / unit
    if "applied_transform" in fields:
        applied = np.eye(4)
        applied[:3] = np.reshape(numbers_of(fields, "applied_transform", 12, where), (3, 4))
        if not np.linalg.det(applied[:3, :3]):
            raise ShardError(f"{where}: applied_transform cannot be undone; export the capture again")
        matrix = np.linalg.inv(applied) @ matrix
    return opencv_pose(matrix)
