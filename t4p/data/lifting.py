"""Where the pixels of a depth image lie: matrices are composed on the host, pixels are lifted on any device.

Everything is float64 up to the point itself, which is float32: the two roundings of a CPU and an accelerator (fused or
not) then differ by 1e-16 of a point, and hardly ever give another float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.schema import Frame
from t4p.data.decode import DecodedFrame
from t4p.data.tensors import as_tensor, moved, scalar_beside
from t4p.geometry import check_intrinsics

# Camera axes (right, down, ahead) to upright ones (right, ahead, up).
UPRIGHT_FROM_CAMERA = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
# Metres of height up to which z is counted from 0: float32 has steps of 0.06 mm there.
FAR = 1000.0
NEAREST = 1e-6  # metres ahead of the colour camera: what is nearer, or behind it, it does not see

Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AffineGrid:
    """An affine map of the points of a depth image: the ray of a pixel is a sum of its column's and its row's.

    Component k at (row, col) with depth z is z * (of_col[k, col] + of_row[k, row]) + offset[k].

    Attributes:
        of_col: (3, w) float64.
        of_row: (3, h) float64.
        offset: (3,) float64.
    """

    of_col: Tensor
    of_row: Tensor
    offset: Tensor

    def component(self, k: int, depth: Tensor) -> Tensor:
        """(h, w) float64 of (h, w) float64 depth."""
        return torch.addcmul(self.offset[k], self.of_col[k, None, :] + self.of_row[k, :, None], depth)

    def bounds(self, deepest: float) -> tuple[Matrix, Matrix]:
        """The (3,) least and largest values for depths from 0 to `deepest`, on the host."""
        low, high = ((self.of_col.amin(1) + self.of_row.amin(1)), (self.of_col.amax(1) + self.of_row.amax(1)))
        low, high = (deepest * low).clamp(max=0) + self.offset, (deepest * high).clamp(min=0) + self.offset
        return low.numpy(), high.numpy()


@dataclass(frozen=True, eq=False)
class SeparablePixels:
    """Where a colour camera in the depth camera's own place sees a pixel: its row gives the row, its column the column.

    Attributes:
        row: (h,) int64 row in the image; outside of it too.
        col: (w,) int64.
    """

    row: Tensor
    col: Tensor


@dataclass(frozen=True, eq=False)
class Lift:
    """How one frame is lifted.

    Attributes:
        depth: (h, w) uint16, thinned by the stride; 0 is no reading.
        depth_scale: units of `depth` per metre.
        max_depth: metres; readings beyond are dropped.
        points: gives metres in the frame of the points.
        pixels: gives (x w, y w, w) in the image, w > 0 ahead of the colour camera; or the pixels themselves.
        image_size: (height, width) of the image that `pixels` are of.
    """

    depth: Tensor
    depth_scale: float
    max_depth: float
    points: AffineGrid
    pixels: AffineGrid | SeparablePixels
    image_size: tuple[int, int]

    def of_rows(self, top: int, below: int) -> Lift:
        """The same for the rows of the depth image from `top` to before `below`."""
        points = replace(self.points, of_row=self.points.of_row[:, top:below])
        pixels: AffineGrid | SeparablePixels
        if isinstance(self.pixels, AffineGrid):
            pixels = replace(self.pixels, of_row=self.pixels.of_row[:, top:below])
        else:
            pixels = replace(self.pixels, row=self.pixels.row[top:below])
        return replace(self, depth=self.depth[top:below], points=points, pixels=pixels)

    def to(self, device: torch.device) -> Lift:
        """The same with its tensors on `device`."""
        points, pixels = moved(self.points, device), moved(self.pixels, device)
        return replace(self, depth=self.depth.to(device, non_blocking=True), points=points, pixels=pixels)

    def metres(self) -> tuple[Tensor, Tensor]:
        """(h, w) float64 depth, and (h, w) bool: whether there is a reading within range."""
        depth = self.depth.float() / scalar_beside(self.depth, self.depth_scale)
        return depth.double(), (depth > 0) & (depth <= self.max_depth)


def plan_lift(frame: DecodedFrame, pixel_stride: int, max_depth: float, out_from_camera: Matrix) -> Lift:
    """Compose the matrices of a frame.

    Args:
        pixel_stride: every k-th row and column of the depth image is lifted.
        max_depth: metres; readings beyond are dropped.
        out_from_camera: (4, 4) affine, depth camera to the frame of the points.

    Raises:
        ValueError: K is no intrinsics matrix.
    """
    rays_from_pixels = np.linalg.inv(check_intrinsics(frame.K_depth))
    height, width = frame.depth.shape
    rows, cols = np.arange(0, height, pixel_stride), np.arange(0, width, pixel_stride)
    # A ray is (a col + b row + c, d row + e, 1): the constants go with the columns.
    of_col = rays_from_pixels[:, :1] * cols + rays_from_pixels[:, 2:]
    of_row = rays_from_pixels[:, 1:2] * rows

    def grid_of(transform: Matrix) -> AffineGrid:
        parts = (transform[:3, :3] @ of_col, transform[:3, :3] @ of_row, transform[:3, 3])
        return AffineGrid(*(as_tensor(part) for part in parts))

    K_image = check_intrinsics(frame.K_color)
    pixels: AffineGrid | SeparablePixels
    if np.array_equal(frame.color_from_depth, np.eye(4)) and not rays_from_pixels[0, 1] and not K_image[0, 1]:
        pixels = SeparablePixels(
            row=torch.from_numpy(np.rint(K_image[1, 1] * (of_row[1] + of_col[1, 0]) + K_image[1, 2]).astype(np.int64)),
            col=torch.from_numpy(np.rint(K_image[0, 0] * of_col[0] + K_image[0, 2]).astype(np.int64)),
        )
    else:
        pixels = grid_of(K_image @ frame.color_from_depth[:3])
    return Lift(
        depth=as_tensor(frame.depth[::pixel_stride, ::pixel_stride]),
        depth_scale=frame.depth_scale,
        max_depth=max_depth,
        points=grid_of(out_from_camera),
        pixels=pixels,
        image_size=(frame.color.shape[0], frame.color.shape[1]),
    )


def out_from_camera(frame: DecodedFrame | Frame, in_world: bool) -> Matrix:
    """(4, 4) depth camera to the world where that is asked for and known, else to upright camera axes."""
    if in_world and frame.world_from_camera is not None:
        return frame.world_from_camera.astype(np.float64)
    return UPRIGHT_FROM_CAMERA


def look_up_pixels(lift: Lift, depth: Tensor, has_reading: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the colour camera sees the points.

    Args:
        depth, has_reading: (h, w), as `Lift.metres` gives them.

    Returns:
        row, col: int64, (h, 1) and (1, w) or both (h, w), inside the image.
        is_seen: (h, w) bool, whether there is a reading, and the image shows its point.
    """
    height, width = lift.image_size
    pixels = lift.pixels
    if isinstance(pixels, SeparablePixels):
        row, col = pixels.row[:, None], pixels.col[None, :]
        ahead = has_reading
    else:
        nearness = pixels.component(2, depth)
        row = torch.round(pixels.component(1, depth) / nearness)
        col = torch.round(pixels.component(0, depth) / nearness)
        ahead = has_reading & (nearness > NEAREST)
        # A double that is not finite, or beyond int64, has no integer that all devices agree on.
        row, col = (torch.nan_to_num(axis, -1).clamp(-1, 1 << 30).long() for axis in (row, col))
    is_seen = ahead & (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return row.clamp(0, height - 1), col.clamp(0, width - 1), is_seen


def local_origin(place: Matrix, voxel_size: float, step: int) -> Matrix:
    """Where coordinates are counted from, so that float32 holds them: (3,) metres, on the grid of voxels.

    In x and y near `place`; in z 0 up to 1 km, because a height above a floor means something.

    Args:
        place: (3,) metres, float64, among the points.
        step: voxels, of which the origin is a multiple.
    """
    origin = np.rint(place / (voxel_size * step)) * (voxel_size * step)
    if abs(place[2]) <= FAR:
        origin[2] = 0.0
    return origin
