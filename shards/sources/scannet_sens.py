"""ScanNet's .sens: every frame of a scan in one file, packed without exporting it first.

A file begins with two cameras and the number of frames; then, for each frame, 96 bytes (world from camera, two stamps,
the lengths of its images) stand before a colour and a depth image. Listing seeks from one to the next and reads nothing
else, so that every 25th frame costs its own bytes alone. Colour and depth have grids and cameras of their own.
Version 4 has readings of the inertial unit behind the frames, version 3 nothing.

The layout is that of the data set's own SensReader (https://github.com/ScanNet/ScanNet), little-endian throughout.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.schema import Matrix
from shards.sources.cameras import Camera, Numbers16, numbers16, read_camera, require_focal, warn_of_lost_tracking
from shards.sources.complete import warn_of_lost
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import MAX_FILE_BYTES, Part, require_no_link, walk_folders

NAME = "scannet-sens"
_VERSIONS = (3, 4)
_MOST_NAME_BYTES, _MOST_FRAMES = 1 << 12, 1 << 24
_COLOR_CODINGS = {1: "png", 2: "jpg"}
_DEPTH_CODINGS = {0: "raw", 1: "zlib"}
_CODING_NAMES = {-1: "unknown", 0: "raw", 1: "zlib", 2: "occi"}
_IMU_BYTES = 128  # of one reading
_FRAME = struct.Struct("<16f4Q")  # world from camera; stamps of colour and depth, lengths of their images

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SensHeader:
    """What stands before the frames.

    Attributes:
        depth_coding: of DEPTH_CODINGS.
        color_size, depth_size: (width, height).
        depth_scale: units per metre.
        num_frames: that the file should have.
        size_bytes: where the first frame begins.
    """

    color_camera: Camera
    depth_camera: Camera
    depth_coding: str
    depth_size: tuple[int, int]
    depth_scale: float
    num_frames: int
    size_bytes: int


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every frame of a .sens file, or of those below a folder, in order; no image is read.

    Raises:
        CallError: no such file or folder, or no .sens in it.
        ShardError: a file is damaged, cut off, or coded in a way that is not read.
    """
    if not root.exists():
        raise CallError(f"{root}: no such file or folder; give a .sens file, or the folder that holds the scans")
    files = [root] if root.is_file() else [
        folder / name for folder, names in walk_folders(root) for name in names if name.lower().endswith(".sens")
    ]  # fmt: skip
    if not files:
        raise CallError(f"{root}: no .sens in it or below; wanted scans/SCENE/SCENE.sens")
    chosen = options.chosen_scenes()
    return tuple(frame for path in files if path.stem in chosen for frame in _scan_file(path, options))


def _scan_file(path: Path, options: SourceOptions) -> list[FrameFiles]:
    require_no_link(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        header = read_header(descriptor, str(path))
        entries = list(_entries(descriptor, header, path, options.only_complete))
    finally:
        os.close(descriptor)
    told = None if options.intrinsics is None else read_camera(options.intrinsics)
    poses = {str(place): pose for place, (pose, _, _, _) in enumerate(entries)}
    warn_of_lost_tracking(poses, path)
    return [
        FrameFiles(
            dataset=NAME,
            scene_id=path.stem,
            frame_id=str(place),
            color=color,
            depth=DepthFiles(depth, options.depth_scale or header.depth_scale, header.depth_coding, header.depth_size),
            color_camera=told or header.color_camera,
            depth_camera=told or header.depth_camera,
            world_from_camera=pose,
            timestamp=stamp / 1e6,
        )
        for place, (pose, stamp, color, depth) in enumerate(entries)
    ]


def read_header(descriptor: int, where: str) -> SensHeader:
    """What stands before the frames of an open file.

    Raises:
        ShardError: it is no .sens, of a version or coding that is not read, or cut off.
    """
    version, length = struct.unpack("<IQ", _read(descriptor, 0, 12, where))
    if version not in _VERSIONS or length > _MOST_NAME_BYTES:
        raise ShardError(f"{where}: not a .sens file of version 3 or 4 (version {version}); download it again")
    place = 12 + length
    matrices = np.frombuffer(_read(descriptor, place, 256, where), "<f4").reshape(4, 4, 4).astype(np.float64)
    place += 256
    facts = struct.unpack("<2i4IfQ", _read(descriptor, place, 36, where))
    color_coding, depth_coding, *sides, depth_scale, num_frames = facts
    if color_coding not in _COLOR_CODINGS:
        raise ShardError(f"{where}: colour is coded as {color_coding}, wanted 1 (PNG) or 2 (JPEG)")
    if depth_coding not in _DEPTH_CODINGS:
        raise ShardError(
            f"{where}: depth is coded as {depth_coding} ({_CODING_NAMES.get(depth_coding, 'not known')}), wanted 0 "
            "(raw) or 1 (zlib); write it anew with ScanNet's own sensor tools"
        )
    if not 0 < depth_scale < np.inf or num_frames > _MOST_FRAMES or not all(0 < side < 65536 for side in sides):
        raise ShardError(
            f"{where}: {num_frames} frames of {sides[0]}x{sides[1]} and {sides[2]}x{sides[3]} at {depth_scale:g} units "
            "a metre; the file is damaged, download it again"
        )
    K_color, color_extrinsics, K_depth, depth_extrinsics = matrices
    _warn_of_two_places((color_extrinsics, depth_extrinsics), where)
    color_size, depth_size = (sides[0], sides[1]), (sides[2], sides[3])
    return SensHeader(
        color_camera=_camera(K_color, color_size, where),
        depth_camera=_camera(K_depth, depth_size, where),
        depth_coding=_DEPTH_CODINGS[depth_coding],
        depth_size=depth_size,
        depth_scale=float(depth_scale),
        num_frames=num_frames,
        size_bytes=place + 36,
    )


def _entries(
    descriptor: int, header: SensHeader, path: Path, only_complete: bool
) -> Iterator[tuple[Numbers16 | None, int, Part, Part]]:
    """Pose, stamp in microseconds, colour and depth of every frame; those behind a cut are refused, or left out."""
    end, place = os.fstat(descriptor).st_size, header.size_bytes
    for frame in range(header.num_frames):
        fits = place + _FRAME.size <= end
        if fits:
            *pose, color_stamp, depth_stamp, color_bytes, depth_bytes = _FRAME.unpack(
                _read(descriptor, place, _FRAME.size, str(path))
            )
            color = Part(path, place + _FRAME.size, color_bytes)
            depth = Part(path, color.offset + color_bytes, depth_bytes)
            fits = depth.offset + depth_bytes <= end and max(color_bytes, depth_bytes) <= MAX_FILE_BYTES
        if not fits:
            if not only_complete:
                raise ShardError(
                    f"{path}: ends within frame {frame} of {header.num_frames}, or that frame is damaged; download it "
                    "again, or take the frames before it with --only-complete"
                )
            lost = [str(one) for one in range(frame, header.num_frames)]
            return warn_of_lost(path, "frames lie behind a cut or a damaged frame", lost, header.num_frames)
        matrix = np.array(pose, np.float64).reshape(4, 4)
        yield numbers16(matrix), depth_stamp or color_stamp, color, depth
        place = depth.offset + depth_bytes
    _warn_of_more(descriptor, path, place, end)


def _warn_of_more(descriptor: int, path: Path, place: int, end: int) -> None:
    """Say that something follows the frames that is no list of readings of the inertial unit: are there more frames?"""
    rest = end - place
    if rest == 0 or (rest >= 8 and rest == 8 + _IMU_BYTES * int.from_bytes(os.pread(descriptor, 8, place), "little")):
        return
    _logger.warning(
        "%s: %d bytes behind its last frame are no readings of an inertial unit; if the number of frames in its header "
        "is damaged, frames are missing: download it again",
        shown(path),
        rest,
    )


def _read(descriptor: int, place: int, size: int, where: str) -> bytes:
    try:
        data = os.pread(descriptor, size, place)
    except OSError as error:
        raise ShardError(f"{where}: cannot be read ({error.strerror})") from error
    if len(data) != size:
        raise ShardError(f"{where}: ends after {place + len(data)} bytes, within its header; download it again")
    return data


def _camera(K: Matrix, size: tuple[int, int], where: str) -> Camera:
    require_focal(K[0, 0], K[1, 1], where)
    return Camera(tuple(K[:3, :3].ravel().tolist()), size)


def _warn_of_two_places(extrinsics: tuple[Matrix, Matrix], where: str) -> None:
    """Say that the cameras do not coincide; the extrinsics are the identity, or all 0, in most files."""
    first, second = (one if np.isfinite(one).all() and one.any() else np.eye(4) for one in extrinsics)
    if not np.allclose(first, second, atol=1e-5):
        apart = 100 * float(np.linalg.norm(first[:3, 3] - second[:3, 3]))
        _logger.warning(
            "%s: the extrinsics of colour and depth differ (%.1f cm apart), and what they count from is not published: "
            "the two cameras are taken as one",
            shown(where),
            apart,
        )
