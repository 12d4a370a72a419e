"""Intrinsics and poses of raw data, in the forms in which they are written, brought to this project's own.

Here a K counts pixels of one image size, integer coordinates are the middles of pixels, and `world_from_camera` has
camera axes x right, y down, z ahead, metres.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from shards.doors.text import shown
from shards.errors import ShardError
from shards.schema import Matrix
from shards.sources.raw_text import read_json, read_matrix

_ASPECT_TOLERANCE = 0.01  # by which width and height may be scaled apart
Numbers16 = tuple[float, ...]  # a (4, 4) matrix, row by row
IDENTITY: Numbers16 = tuple(np.eye(4).ravel().tolist())
# Camera axes of ARKit, OpenGL and most of what shows pictures (x right, y up, looking along -z), from ours.
OPENGL_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Camera:
    """The intrinsics of an image.

    Attributes:
        K: nine numbers, row by row, pixels.
        size: (width, height) of the image that they count the pixels of; None for whatever size it has.
    """

    K: tuple[float, ...]
    size: tuple[int, int] | None = None

    def matrix(self, size: tuple[int, int] | None, where: str) -> Matrix:
        """K (3, 3) for an image of (width, height) `size`, of the same view.

        Raises:
            ShardError: the two sizes have different shapes, so that one image is cut out of the other.
        """
        if self.size is None or size is None or size == self.size:
            return np.array(self.K).reshape(3, 3)
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        if abs(x / y - 1) > _ASPECT_TOLERANCE:
            raise ShardError(
                f"{where}: the image is {size[0]}x{size[1]} and its intrinsics are for {self.size[0]}x{self.size[1]}, "
                "which is of another shape; give the intrinsics of this image (--intrinsics FILE)"
            )
        # The corner of an image, half a pixel outside of the first middle, stays where it is. Written out: BLAS rounds
        # otherwise on other processors, and with it the packed bytes would.
        fx, skew, cx, _, fy, cy, *_ = self.K
        rows = [[x * fx, x * skew, x * (cx + 0.5) - 0.5], [0.0, y * fy, y * (cy + 0.5) - 0.5], [0.0, 0.0, 1.0]]
        return np.array(rows)


def pinhole(fx: float, fy: float, cx: float, cy: float, size: tuple[int, int] | None = None) -> Camera:
    """A camera without skew, pixels."""
    return Camera((fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0), size)


def read_camera(path: Path) -> Camera:
    """The intrinsics in a file: 3x3 or 4x4 numbers, `fx fy cx cy` with or without `width height`, or Open3D's JSON.

    Raises:
        ShardError: another form, or a focal length that is not above 0.
    """
    if path.suffix.lower() == ".json":
        return camera_of_open3d(read_json(path), str(path))
    matrix = read_matrix(path)
    size = None
    if matrix.size in (4, 6):
        fx, fy, cx, cy, *sides = matrix.ravel().tolist()
        K = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
        if sides:
            size = size_of(sides[0], sides[1], str(path))
    elif matrix.shape in ((3, 3), (4, 4)):
        K = matrix[:3, :3].ravel().tolist()
    else:
        raise ShardError(
            f"{path}: found {matrix.shape[0]}x{matrix.shape[1]} numbers, wanted 3x3, 4x4, fx fy cx cy, or fx fy cx cy "
            "width height"
        )
    require_focal(K[0], K[4], str(path))
    return Camera(tuple(K), size)


def camera_of_open3d(fields: Any, where: str) -> Camera:
    """A PinholeCameraIntrinsic: `width`, `height`, `intrinsic_matrix` of nine numbers, column by column."""
    try:
        numbers = [float(number) for number in fields["intrinsic_matrix"]]
        size = size_of(fields["width"], fields["height"], where)
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(
            f"{where}: no intrinsics as Open3D writes them ({error!r}); wanted width, height and intrinsic_matrix"
        ) from error
    if len(numbers) != 9:
        raise ShardError(f"{where}: intrinsic_matrix has {len(numbers)} numbers, wanted 9")
    K = np.array(numbers).reshape(3, 3).T.ravel().tolist()
    require_focal(K[0], K[4], where)
    return Camera(tuple(K), size)


def size_of(width: Any, height: Any, where: str) -> tuple[int, int]:
    """(width, height) in whole pixels; ShardError where they are none."""
    try:
        sides = int(width), int(height)
    except (TypeError, ValueError, OverflowError):
        sides = (0, 0)
    if min(sides) < 1 or sides != (width, height):
        raise ShardError(f"{where}: an image of {width}x{height} pixels, wanted two whole numbers above 0")
    return sides


def require_focal(fx: float, fy: float, where: str) -> None:
    """Raise ShardError where a focal length is not above 0, with what that comes from."""
    if fx > 0 > fy:
        raise ShardError(
            f"{where}: fy is {fy:g}; a focal length below 0 means that the y axis of the camera points up (ICL-NUIM "
            f"publishes its own so): write fy as {-fy:g}, and where there are poses turn the second column of each "
            "(format icl-nuim does both)"
        )
    if not (isfinite(fx) and isfinite(fy) and fx > 0 and fy > 0):
        raise ShardError(f"{where}: fx and fy are {fx:g} and {fy:g}, wanted pixels, above 0")


def read_pose(path: Path) -> Matrix | None:
    """A 4x4 camera-to-world matrix of a text file; None where tracking was lost (numbers not finite, or all 0).

    Raises:
        ShardError: not 4x4.
    """
    matrix = read_matrix(path)
    if matrix.shape != (4, 4):
        raise ShardError(f"{path}: found {matrix.shape[0]}x{matrix.shape[1]} numbers, wanted a 4x4 camera-to-world")
    return None if is_lost(matrix) else matrix


def read_poses(files: Mapping[str, Path], where: Path) -> dict[str, Numbers16 | None]:
    """The poses of frames by name, None where tracking was lost: how often is said of `where`, which holds them.

    Raises:
        ShardError: as `read_pose`.
    """
    poses = {name: numbers16(read_pose(path)) for name, path in files.items()}
    warn_of_lost_tracking(poses, where)
    return poses


def warn_of_lost_tracking(poses: Mapping[str, Numbers16 | None], where: Path) -> None:
    """Say how many poses of `where` are none."""
    lost = [name for name, pose in poses.items() if pose is None]
    if lost:
        _logger.warning(
            "%s: %d of %d poses say that tracking was lost (not finite, or all 0), the first is %s: these frames are "
            "packed without a pose",
            shown(where),
            len(lost),
            len(poses),
            shown(lost[0]),
        )


def inverse_of_rigid(matrix: Matrix) -> Matrix:
    """(4, 4) of a rotation and a translation, by sums and products alone, which are the same on every processor."""
    rows = matrix.tolist()
    inverse = np.eye(4)
    for i in range(3):
        a, b, c = (rows[k][i] for k in range(3))
        inverse[i] = (a, b, c, -(a * rows[0][3] + b * rows[1][3] + c * rows[2][3]))
    return inverse


def product(a: Matrix, b: Matrix) -> Matrix:
    """(4, 4) a @ b, in the same way."""
    columns = b.T.tolist()
    return np.array(
        [[p * w + q * x + r * y + s * z for w, x, y, z in columns] for p, q, r, s in a.tolist()], dtype=np.float64
    )


def is_lost(matrix: Matrix) -> bool:
    """Whether a pose says that there is none: tracking was lost."""
    return not (np.isfinite(matrix).all() and matrix[:3, :3].any())


def numbers16(matrix: Matrix | None) -> Numbers16 | None:
    """A pose as a reader lists it; None where there is none, or tracking was lost."""
    return None if matrix is None or is_lost(matrix) else tuple(matrix.ravel().tolist())


def rigid_from_quaternion(position: ArrayLike, quaternion: ArrayLike) -> Matrix:
    """(4, 4) from a position and a unit quaternion (x, y, z, w)."""
    x, y, z, w = np.asarray(quaternion, np.float64).tolist()
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = position
    return matrix
