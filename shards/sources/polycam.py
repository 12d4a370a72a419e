"""Polycam's raw data: keyframes/ with images, cameras, depth and confidence, named by microseconds.

An export has `images` with `cameras`, and mostly `corrected_images` with `corrected_cameras`, whose poses are better;
they are taken as a pair, never mixed. Depth is millimetres, confidence 0, 127 or 255. A camera has fx, fy, cx, cy for
its picture and t_00 to t_23, the rows of world from camera without the last one, with ARKit's axes and y up. The
layout is that of Polycam's own description (https://github.com/PolyCam/polyform).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import CallError, ShardError
from shards.sources.arkit import DEPTH_SCALE, number_of, opencv_pose, read_fields
from shards.sources.cameras import (
    Camera,
    Numbers16,
    pinhole,
    read_camera,
    require_focal,
    size_of,
    warn_of_lost_tracking,
)
from shards.sources.complete import complete_stems, warn_of_lost
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import COLOR_SUFFIXES, files_by_stem, list_names, name_of, require_folder, walk_folders

NAME = "polycam"
_CONFIDENCE_LEVELS = (0, 127, 255)
_PAIRS = (("corrected_images", "corrected_cameras"), ("images", "cameras"))


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every keyframe below `root` (an export, or a folder of exports), in order of time.

    Raises:
        CallError: no such folder, or no export in it.
        ShardError: a keyframe lacks a file, or one is damaged.
    """
    require_folder(root)
    exports = [folder for folder, _ in walk_folders(root) if _is_export(folder)]
    if not exports:
        raise CallError(
            f"{root}: no images/ with cameras/ and depth/ in it or below; wanted Polycam's export of raw data (LiDAR "
            "or room mode)"
        )
    chosen = options.chosen_scenes()
    return tuple(
        frame for folder in exports if _scene_id(folder) in chosen for frame in _scan_export(folder, options)
    )  # fmt: skip


def _is_export(folder: Path) -> bool:
    return (folder / "depth").is_dir() and any((folder / a).is_dir() and (folder / b).is_dir() for a, b in _PAIRS)


def _scene_id(folder: Path) -> str:
    """The name of an export; the folder that holds its files is called keyframes in each."""
    return name_of(folder.parent) if name_of(folder) == "keyframes" else name_of(folder)


def _scan_export(folder: Path, options: SourceOptions) -> list[FrameFiles]:
    images, cameras = next((pair for pair in _PAIRS if all(list_names(folder / name) for name in pair)), _PAIRS[-1])
    colors, depths = files_by_stem(folder / images, COLOR_SUFFIXES), files_by_stem(folder / "depth", (".png",))
    facts = files_by_stem(folder / cameras, (".json",)).files
    stems = complete_stems(colors, depths, options.only_complete)
    missing = [stem for stem in stems if stem not in facts]
    if missing and not options.only_complete:
        raise ShardError(
            f"{colors.files[missing[0]]}: no file {missing[0]}.json in {folder / cameras} ({len(missing)} of "
            f"{len(stems)} lack theirs); export the capture again, or take what is complete with --only-complete"
        )
    warn_of_lost(folder, f"keyframes have no file in {cameras}", missing, len(stems))
    stems = [stem for stem in stems if stem in facts]
    grades = files_by_stem(folder / "confidence", (".png",)).files
    ungraded = [stem for stem in stems if stem not in grades]
    warn_of_lost(folder, "keyframes have no confidence, all their depth counts", ungraded, len(stems))
    fields = {stem: read_fields(facts[stem]) for stem in stems}
    sizes = {stem: _size(fields[stem], folder / "cameras" / f"{stem}.json", str(facts[stem])) for stem in stems}
    told = None if options.intrinsics is None else read_camera(options.intrinsics)
    poses = {stem: _pose(fields[stem], str(facts[stem])) for stem in stems}
    warn_of_lost_tracking(poses, folder)
    frames = []
    for stem in stems:
        camera = told or _camera(fields[stem], sizes[stem], str(facts[stem]))
        depth = DepthFiles(
            depths.files[stem],
            options.depth_scale or DEPTH_SCALE,
            confidence=grades.get(stem),
            confidence_levels=_CONFIDENCE_LEVELS,
            min_confidence=options.min_confidence if stem in grades else 0,
        )
        frames.append(
            FrameFiles(
                dataset=NAME,
                scene_id=_scene_id(folder),
                frame_id=stem,
                color=colors.files[stem],
                depth=depth,
                color_camera=camera,
                depth_camera=camera,
                world_from_camera=poses[stem],
                timestamp=int(stem) / 1e6 if stem.isdecimal() else None,
            )
        )
    return frames


def _size(fields: Mapping[str, Any], fallback: Path, where: str) -> tuple[int, int]:
    """(width, height) of the picture; newer exports say it in `cameras` alone."""
    if "width" not in fields and fallback.is_file():
        fields, where = read_fields(fallback), str(fallback)
    return size_of(number_of(fields, "width", where), number_of(fields, "height", where), where)


def _camera(fields: Mapping[str, Any], size: tuple[int, int], where: str) -> Camera:
    fx, fy, cx, cy = (number_of(fields, name, where) for name in ("fx", "fy", "cx", "cy"))
    require_focal(fx, fy, where)
    return pinhole(fx, fy, cx, cy, size)


def _pose(fields: Mapping[str, Any], where: str) -> Numbers16 | None:
    rows = [[number_of(fields, f"t_{row}{column}", where) for column in range(4)] for row in range(3)]
    return opencv_pose(np.array([*rows, [0.0, 0.0, 0.0, 1.0]]))
