"""Coloured points, of a frame, a scene or a user, become voxels; and what the network is told of a voxel."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t4p.data.decode import DecodedFrame
from t4p.data.hashing import draw_words, normals_of
from t4p.data.labels import IGNORED
from t4p.data.lifting import local_origin, look_up_pixels, out_from_camera, plan_lift
from t4p.data.placement import AS_RECORDED, Placement
from t4p.data.tensors import as_tensor
from t4p.data.voxels import (
    FIXED_POINT,
    Groups,
    KeyLayout,
    cells_along,
    differs_from_last,
    group,
    sums_between,
)

BITS_OF_AXIS = 20  # of voxels
# Voxels of which the origin of a cloud is a multiple: up to 15 m from the world's, at 3 cm, it is that.
ORIGIN_STEP = 1024


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points.

    Attributes:
        points: (N, 3) float32 or float64 metres, z up: in the world of the dataset, or in upright camera axes.
        colors: (N, 3) float32 in [0, 1].
    """

    points: Tensor
    colors: Tensor


@dataclass(frozen=True, eq=False)
class PointFrame(PointCloud):
    """The points of one frame and where they are seen.

    Attributes:
        pixel_of_point: (N, 2) int64, (row, col) in the colour image.
        depth_pixel_of_point: (N, 2) int64, (row, col) in the depth image, on whose grid labels live.
    """

    pixel_of_point: Tensor
    depth_pixel_of_point: Tensor


@dataclass(frozen=True, eq=False)
class VoxelFrame:
    """The voxels of one cloud of points, or of finer voxels.

    Attributes:
        voxel_coords: (V, 3) int32, unique, ascending in (x, y, z).
        voxel_of_point: (N,) int64 row of `voxel_coords`.
        num_points: (V,) int64.
    """

    voxel_coords: Tensor
    voxel_of_point: Tensor
    num_points: Tensor
    _bounds_of_runs: Tensor
    _order: Tensor
    _voxels: Groups

    def means(self, values: Tensor) -> Tensor:
        """(N, C) values of points to the (V, C) float32 mean over the points of each voxel."""
        fixed = torch.round(values.double() * FIXED_POINT).long().T.contiguous()
        of_runs = (sums_between(column, self._bounds_of_runs)[self._order] for column in fixed)
        sums = torch.stack([self._voxels.sums(column) for column in of_runs], dim=1)
        return (sums.double() / (FIXED_POINT * self.num_points[:, None])).float()


@dataclass(frozen=True, eq=False)
class VoxelCloud:
    """The voxels of one cloud of points, as a network takes them.

    Attributes:
        voxel_coords: (V, 3) int32, unique, ascending in (x, y, z), from 0.
        voxel_of_point: (N,) int64 row of `voxel_coords`.
        voxel_features: (V, C) float32.
        bottleneck_of_voxel: (V,) int64 row of the bottleneck.
        num_bottleneck_voxels: its rows.
        corner: (3,) float64 metres, the low corner of voxel (0, 0, 0), in the frame of the points as they were placed.
    """

    voxel_coords: Tensor
    voxel_of_point: Tensor
    voxel_features: Tensor
    bottleneck_of_voxel: Tensor
    num_bottleneck_voxels: int
    corner: Tensor


def lift_frame(frame: DecodedFrame, pixel_stride: int, max_depth: float, in_world: bool) -> PointFrame:
    """Back-project the depth, and find for each point its pixel in the colour image.

    Args:
        pixel_stride: every k-th row and column of the depth image is lifted.
        max_depth: metres; readings beyond are dropped.
        in_world: take points to the world where the frame has a pose; else they stay in upright camera axes.

    Returns:
        Points, float64, by row and column of the depth. Those without a reading, or outside the colour image, are left
        out: N may be 0.

    Raises:
        ValueError: K is no intrinsics matrix.
    """
    lift = plan_lift(frame, pixel_stride, max_depth, out_from_camera(frame, in_world))
    depth, has_reading = lift.metres()
    row, col, is_seen = look_up_pixels(lift, depth, has_reading)
    depth_row, depth_col = is_seen.nonzero(as_tuple=True)
    row, col = (axis.expand(is_seen.shape)[depth_row, depth_col] for axis in (row, col))
    points = [lift.points.component(k, depth)[depth_row, depth_col] for k in range(3)]
    return PointFrame(
        points=torch.stack(points, dim=1),
        colors=as_tensor(frame.color)[row, col].float() / 255,
        pixel_of_point=torch.stack([row, col], dim=1),
        depth_pixel_of_point=torch.stack([depth_row, depth_col], dim=1) * pixel_stride,
    )


def voxelize(points: Tensor, voxel_size: float, grid_shift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> VoxelFrame:
    """Sort points into cubes.

    Args:
        points: (N, 3) float32 metres; N may be 0.
        voxel_size: metres.
        grid_shift: of a voxel, in [0, 1), that the grid is moved by from the origin.

    Returns:
        Coordinates from 0.

    Raises:
        ValueError: a coordinate is not finite, or the points span more than 2^20 voxels along an axis.
    """
    if not torch.isfinite(points).all():
        raise ValueError("a point has a coordinate that is not finite")
    if not len(points):
        return _voxels_of([torch.zeros(0, dtype=torch.int32)] * 3)
    span = float((points.amax(0) - points.amin(0)).max())
    if span / voxel_size >= (1 << BITS_OF_AXIS) - 1:
        raise ValueError(f"the points span {span:g} m, more than 2^{BITS_OF_AXIS} voxels of {voxel_size} m")
    axes = points.T.contiguous()
    cells = [cells_along(axis, voxel_size, shift) for axis, shift in zip(axes, grid_shift, strict=True)]
    return _voxels_of([cell - cell.min() for cell in cells])


def coarsen(voxel_coords: Tensor, num_strides: int) -> VoxelFrame:
    """The voxels after `num_strides` halvings, in the row order of the sparse network's bottleneck.

    Args:
        voxel_coords: (V, 3) int32, from 0.

    Returns:
        Its points are the fine voxels.
    """
    return _voxels_of([axis >> num_strides for axis in voxel_coords.T.contiguous()])


def placed(points: Tensor, placement: Placement) -> Tensor:
    """(N, 3) float64 points where a placement moves them, of (N, 3) as they were recorded."""
    matrix = torch.from_numpy(placement.matrix)
    return points.double() @ matrix[:3, :3].T + matrix[:3, 3]


def voxelize_cloud(
    cloud: PointCloud,
    voxel_size: float,
    num_strides: int,
    point_features: Sequence[str],
    placement: Placement = AS_RECORDED,
    seed: int = 0,
) -> VoxelCloud:
    """Coloured points to what a network takes: the one way, in fine-tuning, in evaluation and behind `t4p.load`.

    Args:
        cloud: where it is to be seen, as `placed` moves it.
        voxel_size: metres.
        num_strides: halvings between the voxels and the bottleneck.
        point_features: as for `voxel_features`.
        placement: tints the points, shifts the grid, and says what is dropped.
        seed: of the noise on colours, where the placement has some.

    Raises:
        ValueError: as `voxelize`.
    """
    points = cloud.points.double()
    origin = torch.zeros(3, dtype=torch.float64)
    if len(points):
        middle = (points.amin(0) + points.amax(0)) / 2
        origin = torch.from_numpy(local_origin(middle.numpy(), voxel_size, ORIGIN_STEP))
    points = (points - origin).float()
    voxels = voxelize(points, voxel_size, placement.grid_shift)
    coarse = coarsen(voxels.voxel_coords, num_strides)
    colors = positions = torch.zeros(len(voxels.voxel_coords), 3)
    if "color" in point_features:
        words = draw_words(torch.tensor(seed), *voxels.voxel_coords.long().T)
        tint = torch.tensor(placement.tint, dtype=torch.float32)
        colors = jittered(voxels.means(cloud.colors), voxels.num_points[:, None], words, tint, placement.jitter)
    if {"position", "height"} & set(point_features):
        positions = (voxels.means(points) + origin).float()
    features = voxel_features(colors, positions, point_features)
    return VoxelCloud(
        voxel_coords=voxels.voxel_coords,
        voxel_of_point=voxels.voxel_of_point,
        voxel_features=features.masked_fill(torch.tensor(dropped_channels(point_features, placement.dropped)), 0),
        bottleneck_of_voxel=coarse.voxel_of_point,
        num_bottleneck_voxels=len(coarse.voxel_coords),
        corner=origin + _corner(points, voxels, voxel_size, placement.grid_shift),
    )


def _corner(points: Tensor, voxels: VoxelFrame, voxel_size: float, shift: tuple[float, float, float]) -> Tensor:
    """(3,) float64 metres, the low corner of voxel (0, 0, 0): what the first point says of it. 0 without points."""
    if not len(points):
        return torch.zeros(3, dtype=torch.float64)
    moved = zip(points[0, :, None], shift, strict=True)
    cell = torch.cat([cells_along(axis, voxel_size, along) for axis, along in moved])
    first = cell - voxels.voxel_coords[voxels.voxel_of_point[0]]
    return (first.double() - torch.tensor(shift, dtype=torch.float64)) * voxel_size


def jittered(colors: Tensor, num_points: Tensor, words: Tensor, tint: Tensor, jitter: Tensor | float) -> Tensor:
    """(V, 3) float32 mean colours with the exposure of a frame and the noise of a sensor.

    The mean over the n points of a voxel of noise that is drawn for each of them is normal with deviation jitter /
    sqrt(n): it is drawn as that, once. Values are cut off to [0, 1] after the mean, no longer before it.

    Args:
        colors: (V, 3) float32 in [0, 1].
        num_points: (V, 1) points of each voxel.
        words: (V,) int64, drawn for each.
        tint: (3,) or (V, 3), added.
        jitter: scalar or (V, 1), the standard deviation of a single point.
    """
    noise = torch.stack([*normals_of(words), normals_of(draw_words(words, torch.ones_like(words)))[0]], dim=1)
    return (colors + tint + jitter * noise / num_points.float().sqrt()).clamp(0, 1)


def majority_label(label_of_point: Tensor, voxel_of_point: Tensor, num_voxels: int, num_labels: int) -> Tensor:
    """The label that most of a voxel's labelled points have; the smaller index where two tie.

    Args:
        label_of_point: (N,) int64 in 0 .. num_labels - 1, or IGNORED.
        voxel_of_point: (N,) int64 in 0 .. num_voxels - 1.

    Returns:
        (V,) int64, IGNORED where no point of the voxel has a label.
    """
    labelled = label_of_point != IGNORED
    packed, votes = torch.unique(voxel_of_point[labelled] * num_labels + label_of_point[labelled], return_counts=True)
    by_votes = torch.sort(votes, descending=True, stable=True).indices  # stable: smaller labels first
    packed = packed[by_votes]
    voxel = torch.sort(packed // num_labels, stable=True)
    is_first = differs_from_last(voxel.values)
    majority = torch.full((num_voxels,), IGNORED, dtype=torch.int64)
    majority[voxel.values[is_first]] = packed[voxel.indices[is_first]] % num_labels
    return majority


def voxel_features(colors: Tensor, positions: Tensor, kinds: Sequence[str]) -> Tensor:
    """(V, C) float32: the input channels of the network from the means over the points of each voxel.

    Args:
        colors: (V, 3) float32 in [0, 1].
        positions: (V, 3) float32 metres, in the frame of the points.
        kinds: 'one' gives a constant 1, 'color' the colour moved to [-1, 1], 'position' the position as it is, 'height'
            its z alone, which says nothing of where the world has its origin.
    """
    columns = {
        "one": torch.ones_like(colors[:, :1]),
        "color": colors * 2 - 1,
        "position": positions,
        "height": positions[:, 2:],
    }
    return torch.cat([columns[kind] for kind in kinds], dim=1)


def dropped_channels(kinds: Sequence[str], dropped: Collection[str]) -> tuple[bool, ...]:
    """(C,) which channels of `voxel_features` are of a kind that is dropped: 0 everywhere, of a colour middle grey."""
    return tuple(kind in dropped for kind in kinds for _ in range(num_channels((kind,))))


def num_channels(kinds: Sequence[str]) -> int:
    """Input channels that `voxel_features` gives for these kinds."""
    nothing = torch.zeros(0, 3)
    return voxel_features(nothing, nothing, kinds).shape[1]


def _voxels_of(cells: Sequence[Tensor]) -> VoxelFrame:
    """Voxels of x, y and z, each (N,) int32 from 0."""
    layout = KeyLayout(num_frames=1, xyz_bits=(BITS_OF_AXIS,) * 3, place_bits=0)
    keys = layout.pack_cells(cells, (0, 0, 0))
    first = differs_from_last(keys).nonzero().squeeze(1)
    bounds = torch.cat([first, first.new_full((1,), len(keys))])
    by_key = torch.sort(keys[first])
    (voxels,) = group((by_key.values,), layout.first_of_frames(by_key.values))
    voxel_of_run, num_points = torch.empty_like(first), bounds[1:] - first
    voxel_of_run[by_key.indices] = voxels.of_row
    return VoxelFrame(
        voxel_coords=torch.stack(layout.coords(voxels.firsts(by_key.values)), dim=1).int(),
        voxel_of_point=voxel_of_run.repeat_interleave(num_points),
        num_points=voxels.sums(num_points[by_key.indices]),
        _bounds_of_runs=bounds,
        _order=by_key.indices,
        _voxels=voxels,
    )
