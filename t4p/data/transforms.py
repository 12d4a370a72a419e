"""A decoded frame becomes points with pixels, the points become voxels, and both become contrastive pairs.

All functions are pure; the only randomness comes in as a generator that is keyed by the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from t4p.config.data import AugmentConfig
from t4p.data.decode import DecodedFrame
from t4p.geometry import project_points, resize_intrinsics, unproject_depth

# Camera axes (right, down, ahead) to upright ones (right, ahead, up).
UPRIGHT_FROM_CAMERA = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


# What a label index is where nothing is known, or nothing is asked.
IGNORED = -1


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points.

    Attributes:
        points: (N, 3) float32 metres, z up: in the world of the dataset, or in upright camera axes.
        colors: (N, 3) float32 in [0, 1].
    """

    points: NDArray[np.float32]
    colors: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PointFrame(PointCloud):
    """The points of one frame and the image they are seen in.

    Attributes:
        image: (H, W, 3) uint8, at the size the towers see.
        pixel_of_point: (N, 2) int64, (row, col) in `image`.
        depth_pixel_of_point: (N, 2) int64, (row, col) in the depth image, on whose grid labels live.
    """

    image: NDArray[np.uint8]
    pixel_of_point: NDArray[np.int64]
    depth_pixel_of_point: NDArray[np.int64]


AnyCloud = TypeVar("AnyCloud", bound=PointCloud)


@dataclass(frozen=True, eq=False)
class VoxelFrame:
    """The voxels of one frame.

    Attributes:
        voxel_coords: (V, 3) int32, unique, ascending in (x, y, z), from 0.
        voxel_of_point: (N,) int64 row of `voxel_coords`.
    """

    voxel_coords: NDArray[np.int32]
    voxel_of_point: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class VoxelCloud(VoxelFrame):
    """The voxels of one cloud of points, as a network takes them.

    Attributes:
        voxel_features: (V, C) float32.
        bottleneck_of_voxel: (V,) int64 row of the bottleneck.
        num_bottleneck_voxels: its rows.
    """

    voxel_features: NDArray[np.float32]
    bottleneck_of_voxel: NDArray[np.int64]
    num_bottleneck_voxels: int


def lift_frame(
    frame: DecodedFrame, image_size: tuple[int, int], pixel_stride: int, max_depth: float, in_world: bool
) -> PointFrame:
    """Back-project the depth, and find for each point its pixel in the resized colour image.

    Args:
        image_size: (height, width) of the image that is returned.
        pixel_stride: every k-th row and column of the depth image is lifted.
        max_depth: metres; readings beyond are dropped.
        in_world: take points to the world where the frame has a pose; else they stay in upright camera axes.

    Returns:
        Points without a reading, or outside the colour image, are left out: N may be 0.
    """
    height, width = image_size
    found = frame.color.shape[:2]
    image = frame.color
    if found != image_size:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0))
    K_image = resize_intrinsics(frame.K_color, (found[0], found[1]), image_size)

    depth = np.zeros_like(frame.depth)
    depth[::pixel_stride, ::pixel_stride] = frame.depth[::pixel_stride, ::pixel_stride]
    depth[depth > max_depth] = 0
    camera_points, depth_pixel = unproject_depth(depth, frame.K_depth, np.eye(4))
    color_points = camera_points @ frame.color_from_depth[:3, :3].T + frame.color_from_depth[:3, 3]
    ahead = color_points[:, 2] > 1e-6
    camera_points, color_points, depth_pixel = camera_points[ahead], color_points[ahead], depth_pixel[ahead]
    xy, _ = project_points(color_points, K_image)
    col, row = np.rint(xy).astype(np.int64).T
    seen = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    pixel_of_point = np.stack([row[seen], col[seen]], axis=1)

    out_from_camera = UPRIGHT_FROM_CAMERA
    if in_world and frame.world_from_camera is not None:
        out_from_camera = frame.world_from_camera
    points = camera_points[seen] @ out_from_camera[:3, :3].T + out_from_camera[:3, 3]
    colors = image[pixel_of_point[:, 0], pixel_of_point[:, 1]].astype(np.float32) / 255
    return PointFrame(
        points=points.astype(np.float32),
        colors=colors,
        image=image,
        pixel_of_point=pixel_of_point,
        depth_pixel_of_point=depth_pixel[seen],
    )


def augment(cloud: AnyCloud, settings: AugmentConfig, rng: np.random.Generator) -> AnyCloud:
    """Move and tint the points at random. Their order, and what else is known of them (pixels, labels), stays.

    The draws are made in a fixed order whatever is switched on, so that one setting does not change the others' draws.
    """
    angle = rng.uniform(0, 2 * np.pi)
    mirrored = rng.random() < 0.5
    scale = 1 + settings.scale * rng.uniform(-1, 1)
    tint = rng.standard_normal(3)
    noise = rng.standard_normal(cloud.colors.shape, dtype=np.float32)

    linear = np.eye(3) * scale
    if settings.rotation:
        cos, sin = np.cos(angle), np.sin(angle)
        linear = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ linear
    if settings.mirror and mirrored:
        linear = linear @ np.diag([-1.0, 1.0, 1.0])
    # The jitter of a whole frame (exposure, white balance) and of a single point (sensor noise).
    colors = cloud.colors + settings.color_jitter * (tint.astype(np.float32) + noise)
    return replace(
        cloud,
        points=(cloud.points @ linear.T).astype(np.float32),
        colors=np.clip(colors, 0, 1).astype(np.float32),
    )


def voxelize(points: NDArray[np.float32], voxel_size: float, rng: np.random.Generator | None) -> VoxelFrame:
    """Sort points into cubes.

    Args:
        points: (N, 3) metres; N may be 0.
        voxel_size: metres.
        rng: shifts the grid by a uniform fraction of a voxel; None leaves it on the origin.

    Raises:
        ValueError: a coordinate is not finite, or the points span more than 2^20 voxels along an axis.
    """
    if not np.isfinite(points).all():
        raise ValueError("a point has a coordinate that is not finite")
    if not len(points):
        return VoxelFrame(np.zeros((0, 3), np.int32), np.zeros(0, np.int64))
    shift = np.zeros(3) if rng is None else rng.random(3)
    cells = np.floor(points / voxel_size + shift).astype(np.int64)
    cells -= cells.min(axis=0)
    if cells.max() >= 1 << 20:
        raise ValueError(
            f"the points span {float(np.ptp(points, axis=0).max()):g} m, more than 2^20 voxels of {voxel_size} m"
        )
    packed, voxel_of_point = np.unique(_pack(cells), return_inverse=True)
    return VoxelFrame(_unpack(packed), voxel_of_point.reshape(-1))


def coarsen(voxel_coords: NDArray[np.int32], num_strides: int) -> VoxelFrame:
    """The voxels after `num_strides` halvings, in the row order of the sparse network's bottleneck.

    Returns:
        `voxel_of_point` holds, for each fine voxel, its row among the coarse ones.
    """
    packed, parent = np.unique(_pack(voxel_coords.astype(np.int64) >> num_strides), return_inverse=True)
    return VoxelFrame(_unpack(packed), parent.reshape(-1))


def voxelize_cloud(
    cloud: PointCloud,
    voxel_size: float,
    num_strides: int,
    point_features: Sequence[str],
    rng: np.random.Generator | None,
) -> VoxelCloud:
    """Coloured points to what a network takes: the one way, in training, in evaluation and behind `t4p.load`.

    Args:
        voxel_size: metres.
        num_strides: halvings between the voxels and the bottleneck.
        point_features: as for `voxel_features`.
        rng: as for `voxelize`.

    Raises:
        ValueError: as `voxelize`.
    """
    voxels = voxelize(cloud.points, voxel_size, rng)
    coarse = coarsen(voxels.voxel_coords, num_strides)
    colors, positions = (
        mean_per_voxel(values, voxels.voxel_of_point, len(voxels.voxel_coords))
        for values in (cloud.colors, cloud.points)
    )
    return VoxelCloud(
        voxel_coords=voxels.voxel_coords,
        voxel_of_point=voxels.voxel_of_point,
        voxel_features=voxel_features(colors, positions, point_features),
        bottleneck_of_voxel=coarse.voxel_of_point,
        num_bottleneck_voxels=len(coarse.voxel_coords),
    )


def mean_per_voxel(
    values: NDArray[np.float32], voxel_of_point: NDArray[np.int64], num_voxels: int
) -> NDArray[np.float32]:
    """(N, C) values of points to the (V, C) mean over the points of each voxel."""
    counts = np.bincount(voxel_of_point, minlength=num_voxels)
    sums = np.stack([np.bincount(voxel_of_point, column, minlength=num_voxels) for column in values.T], axis=1)
    return (sums / counts[:, None]).astype(np.float32)


def majority_label(
    label_of_point: NDArray[np.int64], voxel_of_point: NDArray[np.int64], num_voxels: int, num_labels: int
) -> NDArray[np.int64]:
    """The label that most of a voxel's labelled points have; the smaller index where two tie.

    Args:
        label_of_point: (N,) in 0 .. num_labels - 1, or IGNORED.
        voxel_of_point: (N,) in 0 .. num_voxels - 1.

    Returns:
        (V,) int64, IGNORED where no point of the voxel has a label.
    """
    labelled = label_of_point != IGNORED
    packed, votes = np.unique(voxel_of_point[labelled] * num_labels + label_of_point[labelled], return_counts=True)
    voxel, label = packed // num_labels, packed % num_labels
    by_votes = np.lexsort((label, -votes, voxel))
    _, first = np.unique(voxel[by_votes], return_index=True)
    majority = np.full(num_voxels, IGNORED, np.int64)
    majority[voxel[by_votes[first]]] = label[by_votes[first]]
    return majority


def voxel_features(
    colors: NDArray[np.float32], positions: NDArray[np.float32], kinds: Sequence[str]
) -> NDArray[np.float32]:
    """The input channels of the network from the means over the points of each voxel.

    Args:
        colors: (V, 3) in [0, 1].
        positions: (V, 3) metres, in the frame of the points.
        kinds: 'one' gives a constant 1, 'color' the colour moved to [-1, 1], 'position' the position as it is, 'height'
            its z alone, which says nothing of where the world has its origin.
    """
    columns = {
        "one": np.ones((len(colors), 1), np.float32),
        "color": colors * 2 - 1,
        "position": positions,
        "height": positions[:, 2:],
    }
    return np.concatenate([columns[kind] for kind in kinds], axis=1).astype(np.float32)


def num_channels(kinds: Sequence[str]) -> int:
    """Input channels that `voxel_features` gives for these kinds."""
    nothing = np.zeros((0, 3), np.float32)
    return voxel_features(nothing, nothing, kinds).shape[1]


def distinct_pairs(voxel: NDArray[np.int64], cell: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct (voxel, cell) pairs with at least one point.

    Args:
        voxel: (N,) voxel of each point.
        cell: (N,) image cell of each point.

    Returns:
        (P, 3) of (voxel, cell, number of points they share), ascending.
    """
    if not len(voxel):
        return np.zeros((0, 3), np.int64)
    num_cells = int(cell.max()) + 1
    packed, num_points = np.unique(voxel * num_cells + cell, return_counts=True)
    return np.stack([packed // num_cells, packed % num_cells, num_points], axis=1)


def draw_pairs(pairs: NDArray[np.int64], at_most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most that many of the (P, 3) pairs, uniformly without repetition, in ascending order."""
    if len(pairs) <= at_most:
        return pairs
    return pairs[np.sort(rng.choice(len(pairs), at_most, replace=False))]


def cell_of_pixel(pixel: NDArray[np.int64], image_size: tuple[int, int], grid: tuple[int, int]) -> NDArray[np.int64]:
    """The row-major index of the grid cell that covers each (row, col) pixel; the grid divides the image evenly."""
    row = pixel[:, 0] * grid[0] // image_size[0]
    col = pixel[:, 1] * grid[1] // image_size[1]
    return row * grid[1] + col


def _pack(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    return (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]


def _unpack(packed: NDArray[np.int64]) -> NDArray[np.int32]:
    mask = (1 << 21) - 1
    return np.stack([packed >> 42, (packed >> 21) & mask, packed & mask], axis=1).astype(np.int32)
