"""Pinhole cameras and rigid transforms: pure functions on numpy arrays.

Camera axes (x, y, z) point right, down, ahead. Integer pixel coordinates are pixel centres, so an image of width W
covers x from -0.5 to W - 0.5. Units are metres and pixels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FloatArray = NDArray[np.float64]

# Poses found in public datasets carry 4 to 8 digits; 7-Scenes' own are off by up to 4e-4.
_RIGID_TOLERANCE = 1e-3


def unproject_depth(
    depth: Array, K: Array, world_from_camera: Array | None = None
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Lift one depth image to points, dropping pixels without a reading.

    Args:
        depth: (H, W) float, metres along the optical axis; 0 means no reading.
        K: (3, 3) intrinsics in pixels, for an image of exactly this H x W.
        world_from_camera: (4, 4) rigid transform; None leaves the points in the camera frame.

    Returns:
        points: (N, 3) metres, world frame (camera frame without a transform), row-major pixel order.
        pixel_of_point: (N, 2) int, (row, col).

    Raises:
        ValueError: depth is not 2-D, or holds a negative or non-finite value; K is no intrinsics matrix; or
            world_from_camera is not rigid.
    """
    depth = np.asarray(depth)
    if depth.ndim != 2:
        raise ValueError(f"depth must be an image (H, W), got shape {depth.shape}")
    if not (depth >= 0).all() or np.isinf(depth).any():
        raise ValueError(
            f"depth must be finite metres, 0 where there is no reading; found values from {depth.min()} to "
            f"{depth.max()}; set pixels without a reading to 0"
        )
    rays_from_pixels = np.linalg.inv(check_intrinsics(K))
    pixel_of_point = np.argwhere(depth > 0)
    rows, cols = pixel_of_point.T
    pixels = np.stack([cols, rows, np.ones_like(rows)], axis=1).astype(np.float64)
    points = pixels @ rays_from_pixels.T * depth[rows, cols, None].astype(np.float64)
    if world_from_camera is not None:
        transform = check_rigid(world_from_camera, "world_from_camera")
        points = points @ transform[:3, :3].T + transform[:3, 3]
    return points, pixel_of_point


def project_points(points: Array, K: Array) -> tuple[FloatArray, FloatArray]:
    """Where camera-frame points appear in the image; the inverse of unproject_depth.

    Args:
        points: (N, 3) metres, camera frame.
        K: (3, 3) intrinsics in pixels.

    Returns:
        pixels: (N, 2) float, (x, y), also outside the image; nan for points at or behind the camera plane.
        depth: (N,) metres along the optical axis, 0 or negative at or behind the camera plane.

    Raises:
        ValueError: points is not (N, 3), or K is no intrinsics matrix.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be (N, 3), got shape {points.shape}")
    depth = points[:, 2]
    homogeneous = points @ check_intrinsics(K).T
    pixels = np.full((len(points), 2), np.nan)
    np.divide(homogeneous[:, :2], depth[:, None], out=pixels, where=depth[:, None] > 0)
    return pixels, depth


def check_rigid(transform: Array, name: str) -> FloatArray:
    """The transform as float64, once it is known to be rigid: a rotation (to 1e-3) and a finite translation.

    Args:
        transform: (4, 4).
        name: what the error calls it.

    Raises:
        ValueError: it is not rigid; the message says in which way.
    """
    matrix = np.asarray(transform, dtype=np.float64)
    if matrix.shape != (4, 4):
        raise ValueError(f"{name} must be a (4, 4) rigid transform, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} is not rigid: it holds nan or infinite entries (a frame whose tracking was lost?)")
    if not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise ValueError(f"{name} is not rigid: its last row is {matrix[3].tolist()}, not [0, 0, 0, 1]; transposed?")
    rotation = matrix[:3, :3]
    error = float(np.abs(rotation @ rotation.T - np.eye(3)).max())
    if error > _RIGID_TOLERANCE:
        raise ValueError(
            f"{name} is not rigid: R R^T is off the identity by {error:.3g} (at most {_RIGID_TOLERANCE} is accepted); "
            "it carries a scale or a shear"
        )
    if np.linalg.det(rotation) < 0:
        raise ValueError(f"{name} is not rigid: its determinant is negative, it mirrors; one axis has the wrong sign")
    return matrix


def invert_rigid(transform: Array) -> FloatArray:
    """The (4, 4) inverse of a rigid transform: camera_from_world of world_from_camera.

    Raises:
        ValueError: the transform is not rigid.
    """
    matrix = check_rigid(transform, "the transform to invert")
    inverse = np.eye(4)
    # Not the transpose: real poses are orthonormal to a few digits only, and the way back must end where it began.
    inverse[:3, :3] = np.linalg.inv(matrix[:3, :3])
    inverse[:3, 3] = -inverse[:3, :3] @ matrix[:3, 3]
    return inverse


def resize_intrinsics(K: Array, from_size: tuple[int, int], to_size: tuple[int, int]) -> FloatArray:
    """Intrinsics of the same camera after its image was resized edge to edge.

    Args:
        K: (3, 3) intrinsics in pixels, for an image of from_size.
        from_size: (height, width) in pixels.
        to_size: (height, width) in pixels.

    Returns:
        (3, 3) a new matrix. Edges stay on edges while integer coordinates are pixel centres, hence
        x' = (x + 0.5) * scale - 0.5.

    Raises:
        ValueError: a size is not positive, or K is no intrinsics matrix.
    """
    if min(*from_size, *to_size) < 1:
        raise ValueError(f"image sizes must be positive, got {from_size} and {to_size}")
    scale_y, scale_x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    resized_from_original = np.array(
        [[scale_x, 0.0, 0.5 * scale_x - 0.5], [0.0, scale_y, 0.5 * scale_y - 0.5], [0.0, 0.0, 1.0]]
    )
    return resized_from_original @ check_intrinsics(K)


def check_intrinsics(K: Array) -> FloatArray:
    """The intrinsics as float64, once they are known to be some.

    Raises:
        ValueError: K is not (3, 3), or not of that form.
    """
    matrix = np.asarray(K, dtype=np.float64)
    if matrix.shape != (3, 3):
        raise ValueError(f"K must be (3, 3), got shape {matrix.shape}")
    well_formed = np.isfinite(matrix).all() and np.array_equal(matrix[2], [0, 0, 1]) and matrix[1, 0] == 0
    if not well_formed or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(
            f"K must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]] with positive focal lengths, got {matrix.tolist()}"
        )
    return matrix
