"""3D Scanner App (laan labs), export "All Data": frame_N.json, depth_N.png, conf_N.png, every third time frame_N.jpg.

Depth is 256x192 millimetres without a pixel of 0; conf_N.png grades it 0, 1, 2. Each JSON has the intrinsics of the
colour image, row by row, and `cameraPoseARFrame`, world from camera, row by row, with ARKit's axes. Where the phone was
on the globe is in these files too, and is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import CallError, ShardError
from shards.headers import jpeg_size
from shards.sources.arkit import DEPTH_SCALE, number_of, numbers_of, opencv_pose, read_fields
from shards.sources.cameras import Camera, Numbers16, read_camera, require_focal, warn_of_lost_tracking
from shards.sources.complete import warn_of_lost
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import FilesByStem, files_by_stem, name_of, read_bytes, require_folder, walk_folders

NAME = "3d-scanner-app"


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every frame with a colour image below `root` (a capture, or a folder of captures), in order.

    Raises:
        CallError: no such folder, or no capture in it.
        ShardError: a frame lacks its depth or its JSON, or these are damaged.
    """
    require_folder(root)
    chosen = options.chosen_scenes()
    frames = [
        frame
        for folder, names in walk_folders(root)
        if any(name.startswith("depth_") for name in names) and name_of_capture(folder) in chosen
        for frame in _scan_capture(folder, names, options)
    ]
    if not frames:
        raise CallError(
            f"{root}: no frame_N.jpg with depth_N.png and frame_N.json in it or below; wanted the app's export All Data"
        )
    return tuple(frames)


def name_of_capture(folder: Path) -> str:
    """Its name; the app calls the folder of every export All_Data, and the one above it by the capture's name."""
    name = name_of(folder)
    return name_of(folder.parent) if name.lower().replace("_", " ") == "all data" else name


def _scan_capture(folder: Path, names: list[str], options: SourceOptions) -> list[FrameFiles]:
    colors = _numbered(folder, names, "frame_", (".jpg", ".jpeg"))
    depths = _numbered(folder, names, "depth_", (".png",))
    facts = _numbered(folder, names, "frame_", (".json",))
    grades = _numbered(folder, names, "conf_", (".png",))
    ids = list(colors)
    for have, kind in ((depths, "depth_N.png"), (facts, "frame_N.json")):
        missing = [frame_id for frame_id in ids if frame_id not in have]
        if missing and not options.only_complete:
            raise ShardError(
                f"{colors[missing[0]]}: its {kind} is missing ({len(missing)} of {len(ids)} lack theirs); export the "
                "capture again, or take what is complete with --only-complete"
            )
        warn_of_lost(folder, f"frames have no {kind}", missing, len(ids))
        ids = [frame_id for frame_id in ids if frame_id in have]
    # The app keeps depth of every frame and colour of every third: that is no damage.
    warn_of_lost(folder, "depth images have no colour image", [one for one in depths if one not in colors], len(depths))
    if not ids:
        return []
    size = jpeg_size(read_bytes(colors[ids[0]]))
    fields = {one: read_fields(facts[one]) for one in ids}
    told = None if options.intrinsics is None else read_camera(options.intrinsics)
    cameras = {one: told or _camera(fields[one], size, str(facts[one])) for one in ids}
    poses = {one: _pose(fields[one], str(facts[one])) for one in ids}
    warn_of_lost_tracking(poses, folder)
    return [
        FrameFiles(
            dataset=NAME,
            scene_id=name_of_capture(folder),
            frame_id=one,
            color=colors[one],
            depth=DepthFiles(
                depths[one],
                options.depth_scale or DEPTH_SCALE,
                confidence=grades.get(one),
                min_confidence=options.min_confidence,
            ),
            color_camera=cameras[one],
            depth_camera=cameras[one],
            world_from_camera=poses[one],
            timestamp=number_of(fields[one], "time", str(facts[one])) if "time" in fields[one] else None,
        )
        for one in ids
    ]


def _numbered(folder: Path, names: list[str], prefix: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by what stands between prefix and suffix."""
    found: FilesByStem = files_by_stem(folder, suffixes, [name for name in names if name.startswith(prefix)])
    return {stem.removeprefix(prefix): path for stem, path in found.files.items()}


def _camera(fields: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> Camera:
    numbers = numbers_of(fields, "intrinsics", 9, where)
    require_focal(numbers[0], numbers[4], where)
    return Camera(tuple(numbers), size)


def _pose(fields: Mapping[str, Any], where: str) -> Numbers16 | None:
    return opencv_pose(np.reshape(numbers_of(fields, "cameraPoseARFrame", 16, where), (4, 4)))
