"""7-Scenes: frame-N.color.png (or .jpg), frame-N.depth.png, frame-N.pose.txt in folders named seq-XX.

Depth is in millimetres and 65535 means no reading. Poses are camera to world, OpenCV axes. Colour and depth come from
two lenses and were not registered by the authors; like everybody, we take them as one view.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.schema import Frame, Matrix
from shards.sources.raw_files import (
    COLOR_SUFFIXES,
    SourceOptions,
    color_format,
    pinhole,
    read_bytes,
    read_depth,
    read_intrinsics,
    read_world_from_camera,
    require_folder,
    walk_folders,
)

NAME = "seven-scenes"
_DEPTH_SCALE = 1000.0
_NO_READING = 65535
_DEPTH_SUFFIX = ".depth.png"
_INTRINSICS = (585.0, 585.0, 320.0, 240.0)  # published for the Kinect of 7-Scenes
_INTRINSICS_FILE = "camera-intrinsics.txt"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SevenScenesRef:
    """One frame on disk."""

    scene_id: str
    frame_id: str
    color: Path
    depth: Path
    world_from_camera_file: Path | None
    intrinsics_file: Path | None
    depth_scale: float

    @property
    def origin(self) -> str:
        """Where the frame lies, for messages."""
        return f"{self.color}, {self.depth}"


def scan(root: Path, options: SourceOptions) -> tuple[SevenScenesRef, ...]:
    """Every frame below `root` (a sequence, a scene, or all scenes), in order.

    Raises:
        CallError: no such folder, or no frame in it.
        ShardError: a frame without its colour image, or a colour image without depth.
    """
    require_folder(root)
    refs = [ref for folder, names in walk_folders(root) for ref in _scan_folder(folder, names, root, options)]
    if not refs:
        raise CallError(
            f"{root}: no *{_DEPTH_SUFFIX} in it or below; wanted 7-Scenes frames such as seq-01/frame-000000.depth.png "
            "(unzip the sequences first)"
        )
    return tuple(refs)


def read(ref: SevenScenesRef) -> Frame:
    """Load one frame; raises ShardError naming the file that is wrong."""
    K = pinhole(*_INTRINSICS) if ref.intrinsics_file is None else read_intrinsics(ref.intrinsics_file)
    return Frame(
        dataset=NAME,
        scene_id=ref.scene_id,
        frame_id=ref.frame_id,
        color=read_bytes(ref.color),
        color_format=color_format(ref.color),
        depth=read_depth(ref.depth),
        depth_scale=ref.depth_scale,
        K_depth=K,
        K_color=K,
        color_from_depth=np.eye(4),
        world_from_camera=_read_pose(ref.world_from_camera_file),
        no_reading=_NO_READING,
    )


def _read_pose(path: Path | None) -> Matrix | None:
    return None if path is None else read_world_from_camera(path)


def _scan_folder(folder: Path, names: list[str], root: Path, options: SourceOptions) -> list[SevenScenesRef]:
    present = set(names)
    frame_ids = [name.removesuffix(_DEPTH_SUFFIX) for name in names if name.endswith(_DEPTH_SUFFIX)]
    _require_depth(folder, names, set(frame_ids))
    if not frame_ids:
        return []
    without_pose = [frame_id for frame_id in frame_ids if f"{frame_id}.pose.txt" not in present]
    if without_pose:
        _logger.warning(
            "%s: %d of %d frames have no pose file, the first is %s",
            shown(folder),
            len(without_pose),
            len(frame_ids),
            shown(without_pose[0]),
        )
    scene_id, intrinsics_file = _scene_id(folder), _find_intrinsics(folder, root)
    refs = []
    for frame_id in frame_ids:
        colors = [f"{frame_id}.color{suffix}" for suffix in COLOR_SUFFIXES if f"{frame_id}.color{suffix}" in present]
        if len(colors) != 1:
            raise ShardError(
                f"{folder / frame_id}{_DEPTH_SUFFIX}: wanted one colour image {frame_id}.color.png or .jpg beside it, "
                f"found {colors or 'none'}; restore the file or remove the frame"
            )
        refs.append(
            SevenScenesRef(
                scene_id=scene_id,
                frame_id=frame_id,
                color=folder / colors[0],
                depth=folder / f"{frame_id}{_DEPTH_SUFFIX}",
                world_from_camera_file=folder / f"{frame_id}.pose.txt" if f"{frame_id}.pose.txt" in present else None,
                intrinsics_file=intrinsics_file,
                depth_scale=options.depth_scale or _DEPTH_SCALE,
            )
        )
    return refs


def _require_depth(folder: Path, names: list[str], frame_ids: set[str]) -> None:
    suffixes = tuple(f".color{suffix}" for suffix in COLOR_SUFFIXES)
    lonely = [name for name in names if name.endswith(suffixes) and name.rpartition(".color.")[0] not in frame_ids]
    if lonely:
        raise ShardError(
            f"{folder / lonely[0]}: no {lonely[0].rpartition('.color.')[0]}{_DEPTH_SUFFIX} beside it ({len(lonely)} "
            "colour images lack theirs); restore it or remove the frame"
        )


def _scene_id(folder: Path) -> str:
    # Every scene has a seq-01: the scene's own name makes keys unique across scenes and datasets.
    folder = folder.resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith("seq-") else folder.name


def _find_intrinsics(folder: Path, root: Path) -> Path | None:
    """The intrinsics file of the folder or of the nearest folder above it, not above `root`."""
    while True:
        if (folder / _INTRINSICS_FILE).is_file():
            return folder / _INTRINSICS_FILE
        if folder == root:
            return None
        folder = folder.parent
