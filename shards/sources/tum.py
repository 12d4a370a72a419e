"""TUM RGB-D: rgb.txt, depth.txt and groundtruth.txt list stamps; colour, depth and pose were not taken at one time.

Depth is registered to colour, 5000 units per metre, 0 = none. The ground truth is the pose of the camera at about
100 Hz (t tx ty tz qx qy qz qw, camera to world, OpenCV axes). Lens distortion of the colour image is not corrected.
"""

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.schema import Matrix
from shards.sources.cameras import Camera, numbers16, pinhole, read_camera, rigid_from_quaternion
from shards.sources.complete import warn_of_lost
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import beside, name_of, require_folder, walk_folders
from shards.sources.raw_text import columns_of, content_lines, is_number, read_text

NAME = "tum"
_DEPTH_SCALE = 5000.0
_MAX_STAMP_GAP = 0.02  # seconds between colour and depth, and to the nearest pose: the benchmark's own rule
_MAX_POSE_STEP = 0.1  # seconds between two poses that may be interpolated
_SLERP_HALVINGS = 53  # of an arc of at most a quarter turn: beyond what a float64 resolves
_ROS_INTRINSICS = (525.0, 525.0, 319.5, 239.5)
_INTRINSICS_FILES = ("intrinsic.txt", "intrinsics.txt", "camera-intrinsics.txt")
_INTRINSICS = {  # published calibration of the three cameras, by the number in the sequence's name
    "1": (517.3, 516.5, 318.6, 255.3),
    "2": (520.9, 521.0, 325.1, 249.7),
    "3": (535.4, 539.2, 320.1, 247.6),
}


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every associated pair below `root` (a sequence, or a folder of sequences), in order of time.

    Raises:
        CallError: no such folder, or no sequence in it.
        ShardError: a list is malformed, or no colour image has a depth image within 0.02 s.
    """
    require_folder(root)
    sequences = [folder for folder, names in walk_folders(root) if {"rgb.txt", "depth.txt"} <= set(names)]
    if not sequences:
        raise CallError(f"{root}: no rgb.txt with depth.txt in it or below; wanted an unpacked TUM RGB-D sequence")
    chosen = options.chosen_scenes()
    return tuple(
        frame for folder in sequences if name_of(folder) in chosen for frame in _scan_sequence(folder, options)
    )


def associate(first: Sequence[float], second: Sequence[float], max_gap: float) -> list[tuple[int, int]]:
    """Pair two sorted lists of stamps, closest pairs first, each stamp at most once (the benchmark's associate.py).

    Args:
        first: seconds, ascending.
        second: seconds, ascending.
        max_gap: seconds, exclusive.

    Returns:
        (index in first, index in second), in order of time.
    """
    candidates: list[tuple[float, int, int]] = []
    for i, stamp in enumerate(first):
        near = range(bisect.bisect_left(second, stamp - max_gap), bisect.bisect_right(second, stamp + max_gap))
        candidates.extend((abs(stamp - second[j]), i, j) for j in near if abs(stamp - second[j]) < max_gap)
    used_first: set[int] = set()
    used_second: set[int] = set()
    pairs = []
    for _, i, j in sorted(candidates):
        if i not in used_first and j not in used_second:
            used_first.add(i)
            used_second.add(j)
            pairs.append((i, j))
    return sorted(pairs)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Recorded poses.

    Attributes:
        stamps: (n,) seconds, ascending.
        positions: (n, 3) metres, camera centre in the world.
        quaternions: (n, 4) unit, (x, y, z, w), world from camera.
    """

    stamps: NDArray[np.float64]
    positions: NDArray[np.float64]
    quaternions: NDArray[np.float64]

    def world_from_camera(self, stamp: float) -> Matrix | None:
        """The pose at `stamp`, between the two recorded around it; None in a gap or outside the recording.

        Positions are interpolated linearly, rotations along the great circle. Measured on 40 frames of fr1/rpy, which
        turns fast: mean of the frames' relative depth errors after reprojection 0.0180, against 0.0183 with the
        nearest recorded pose (median of the frames 0.0136 against 0.0132: no difference beyond the noise). Both fall
        to 0.0127 and 0.0129 for poses 20 ms earlier, a delay of the recording that we do not correct.
        """
        after = int(np.searchsorted(self.stamps, stamp))
        if after < len(self.stamps) and self.stamps[after] == stamp:
            return rigid_from_quaternion(self.positions[after], self.quaternions[after])
        if after in (0, len(self.stamps)):
            return None
        before = after - 1
        step = float(self.stamps[after] - self.stamps[before])
        share = float(stamp - self.stamps[before]) / step
        if step > _MAX_POSE_STEP or min(share, 1 - share) * step > _MAX_STAMP_GAP:
            return None
        position = (1 - share) * self.positions[before] + share * self.positions[after]
        return rigid_from_quaternion(position, slerp(self.quaternions[before], self.quaternions[after], share))


def slerp(first: NDArray[np.float64], second: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The unit quaternion `share` of the way from first to second, the short way round.

    Found by halving the arc, with sums, products and square roots only: IEEE 754 rounds these alike everywhere, whereas
    sines, arc cosines and BLAS dot products differ between libraries and processors in their last digits, and with them
    the packed bytes would.
    """
    low, high = first.tolist(), second.tolist()
    if sum(a * b for a, b in zip(low, high, strict=True)) < 0:  # q and -q are one rotation
        high = [-b for b in high]
    for _ in range(_SLERP_HALVINGS):
        middle = [a + b for a, b in zip(low, high, strict=True)]
        length = _length(middle)
        middle = [a / length for a in middle]
        share *= 2
        if share < 1:
            high = middle
        else:
            low, share = middle, share - 1
    return np.array(low)


def _length(vector: Sequence[float]) -> float:
    total = 0.0
    for number in vector:  # sum() compensates rounding errors from Python 3.12 on: other last digits
        total += number * number
    return math.sqrt(total)


def _scan_sequence(folder: Path, options: SourceOptions) -> list[FrameFiles]:
    color_stamps, color_names = _read_list(folder / "rgb.txt")
    depth_stamps, depth_names = _read_list(folder / "depth.txt")
    pairs = associate(
        [float(stamp) for stamp in color_stamps], [float(stamp) for stamp in depth_stamps], _MAX_STAMP_GAP
    )
    if not pairs:
        raise ShardError(
            f"{folder}: none of the {len(color_stamps)} colour stamps of rgb.txt is within {_MAX_STAMP_GAP} s of one "
            f"of the {len(depth_stamps)} of depth.txt; are the two lists of one recording?"
        )
    for path, names, pair_side in ((folder / "rgb.txt", color_names, 0), (folder / "depth.txt", depth_names, 1)):
        used = {pair[pair_side] for pair in pairs}
        warn_of_lost(path, "images have no partner", [names[i] for i in range(len(names)) if i not in used], len(names))
    trajectory = _read_trajectory(folder / "groundtruth.txt") if (folder / "groundtruth.txt").is_file() else None
    name = name_of(folder)
    camera = _camera(folder, options)
    frames = []
    for i, j in pairs:
        stamp = float(depth_stamps[j])
        frames.append(
            FrameFiles(
                dataset=NAME,
                scene_id=name,
                frame_id=color_stamps[i],
                color=beside(folder, color_names[i], f"{folder / 'rgb.txt'}"),
                depth=DepthFiles(
                    beside(folder, depth_names[j], f"{folder / 'depth.txt'}"), options.depth_scale or _DEPTH_SCALE
                ),
                color_camera=camera,
                depth_camera=camera,
                world_from_camera=None if trajectory is None else numbers16(trajectory.world_from_camera(stamp)),
                timestamp=stamp,
            )
        )
    without_pose = [frame.frame_id for frame in frames if frame.world_from_camera is None]
    warn_of_lost(folder / "groundtruth.txt", "frames have no pose", without_pose, len(frames))
    return frames


def _camera(folder: Path, options: SourceOptions) -> Camera:
    """Of the option, of a file in the sequence, or the published one of the camera that the folder's name says."""
    if options.intrinsics is not None:
        return read_camera(options.intrinsics)
    for file in _INTRINSICS_FILES:
        if (folder / file).is_file():
            return read_camera(folder / file)
    name = name_of(folder)
    camera = re.search(r"(?:freiburg|fr)([123])(?!\d)", name)
    if camera is None:
        raise ShardError(
            f"{folder}: its name does not say which camera of the benchmark it was (freiburg1, 2 or 3), and there is "
            f"no {_INTRINSICS_FILES[0]} in it; give the intrinsics with --intrinsics FILE (fx fy cx cy; the default of "
            f"ROS is {' '.join(f'{number:g}' for number in _ROS_INTRINSICS)}, a few pixels off most cameras)"
        )
    return pinhole(*_INTRINSICS[camera[1]])


def _read_list(path: Path) -> tuple[list[str], list[str]]:
    """Stamps (as spelled) and file names of rgb.txt or depth.txt, in order of time."""
    rows = _read_rows(path, 2)
    rows.sort(key=lambda row: float(row[0]))
    return [row[0] for row in rows], [row[1] for row in rows]


def _read_trajectory(path: Path) -> Trajectory:
    try:
        table = np.array([[float(number) for number in row] for row in _read_rows(path, 8)]).reshape(-1, 8)
    except ValueError as error:
        raise ShardError(f"{path}: not a number ({error}); wanted lines 't tx ty tz qx qy qz qw'") from error
    table = table[np.isfinite(table).all(axis=1)]  # lost tracking is a gap
    table = table[np.argsort(table[:, 0], kind="stable")]
    norms = np.array([_length(row) for row in table[:, 4:].tolist()]).reshape(-1, 1)
    if len(table) and np.abs(norms - 1).max() > 0.01:
        raise ShardError(f"{path}: a quaternion has length {norms[np.abs(norms - 1).argmax(), 0]:.3g}, wanted 1")
    return Trajectory(table[:, 0], table[:, 1:4], table[:, 4:] / norms)


def _read_rows(path: Path, num_columns: int) -> list[list[str]]:
    rows = []
    for number, line in content_lines(read_text(path)):
        row = line.split()
        if len(row) != num_columns:  # a file name may hold a comma
            row = columns_of(line, f"{path}, line {number}")
        if len(row) != num_columns or not is_number(row[0]):
            raise ShardError(
                f"{path}, line {number}: found '{shown(line)}', wanted a stamp and {num_columns - 1} more columns"
            )
        rows.append(row)
    return rows
