"""What a loader prepares of one frame: pixels as they were decoded, matrices, and the draws for the whole frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from t4p.config.data import NOTHING_DROPPED, AugmentConfig, DropFeaturesConfig
from t4p.data.decode import DecodedFrame, with_color_of
from t4p.data.draws import draw_key, sample_seed
from t4p.data.lifting import Lift, local_origin, out_from_camera, plan_lift
from t4p.data.placement import Placement, draw_placement
from t4p.data.tensors import as_tensor, moved

MOST_VOXEL_BITS = 40  # of x, y and z together: what leaves room for the pixels and frames of a batch in a key

# On average; four times as many can be added up (t4p/data/pairing.py), where the colour camera sees more than depth.
MOST_POINTS_OF_PIXEL = 2000


@dataclass(frozen=True)
class SampleSettings:
    """How a frame is turned into a sample.

    Attributes:
        image_size: (height, width) the towers see, pixels.
        cell_grid: (Hc, Wc) of the dense CLIP features.
        decoder_grid: (H', W') of the 2D decoder, a multiple of cell_grid.
        voxel_size: metres.
        num_strides: halvings between the voxels and the bottleneck.
        in_world: points in the world of the dataset where there are poses, else in upright camera axes.
        num_pairs_e, num_pairs_d: pairs drawn at most, uniformly; None keeps all.
        augment: None for validation, which also leaves the voxel grid on the origin and drops no feature.
        drop_features: what samples go without, and how many of them.
    """

    image_size: tuple[int, int]
    cell_grid: tuple[int, int]
    decoder_grid: tuple[int, int]
    pixel_stride: int
    max_depth: float
    in_world: bool
    voxel_size: float
    num_strides: int
    point_features: tuple[str, ...]
    num_pairs_e: int | None
    num_pairs_d: int | None
    augment: AugmentConfig | None
    seed: int
    drop_features: DropFeaturesConfig = NOTHING_DROPPED


@dataclass(frozen=True, eq=False)
class PreparedFrame:
    """One frame before its points are made.

    Attributes:
        key: key of the stored sample.
        image: (H, W, 3) uint8, at the size the towers see.
        lift: its points are augmented, and counted from `origin`.
        origin: (3,) float64 metres, a corner of the grid of voxels before it is shifted.
        placement: what was drawn for the frame as a whole.
        low: (3,) a voxel that is below all of its points along each axis.
        xyz_bits: that hold the voxels from there on.
        seeds: of the draws for pairs of L_e, for pairs of L_d, and for the colours of voxels.
    """

    key: str
    image: Tensor
    lift: Lift
    origin: Tensor
    placement: Placement
    low: tuple[int, int, int]
    xyz_bits: tuple[int, int, int]
    seeds: tuple[int, int, int]

    def to(self, device: torch.device) -> PreparedFrame:
        """The same with its tensors on `device`."""
        return replace(moved(self, device), lift=self.lift.to(device))


def prepare_frame(
    frame: DecodedFrame, key: str, epoch: int, settings: SampleSettings, dataset_index: int = 0
) -> PreparedFrame:
    """Compose matrices and make the draws of the whole frame; every draw is keyed by (seed, epoch, dataset, key).

    Raises:
        ValueError: a matrix is not what it should be, or the points span too many voxels.
    """
    frame = with_color_of(frame, settings.image_size)
    drawn_by = draw_key(dataset_index, key)
    placement = draw_placement(settings.augment, settings.seed, epoch, drawn_by, settings.drop_features)
    transform = placement.matrix @ out_from_camera(frame, settings.in_world)
    # The camera is at the origin in its own axes: what is lifted there keeps its coordinates.
    origin = local_origin(transform[:3, 3], settings.voxel_size, step=1)
    transform[:3, 3] -= origin
    lift = plan_lift(frame, settings.pixel_stride, settings.max_depth, transform)
    in_range = frame.depth[:: settings.pixel_stride, :: settings.pixel_stride]
    deepest = min(float(in_range.max(initial=0)) / frame.depth_scale, settings.max_depth)
    least, most = (bound / settings.voxel_size for bound in lift.points.bounds(deepest))
    low, high = np.floor(least).astype(np.int64) - 1, np.floor(most).astype(np.int64) + 2  # the grid's shift, roundings
    x_bits, y_bits, z_bits = (int(span).bit_length() for span in high - low)
    if x_bits + y_bits + z_bits > MOST_VOXEL_BITS:
        raise ValueError(
            f"the points span up to {max(high - low) * settings.voxel_size:g} m along an axis, in all more than "
            f"2^{MOST_VOXEL_BITS} voxels of {settings.voxel_size} m; raise model.voxel_size or lower data.max_depth"
        )
    points_of_pixel = in_range.size / (settings.decoder_grid[0] * settings.decoder_grid[1])
    if points_of_pixel > MOST_POINTS_OF_PIXEL:
        raise ValueError(
            f"{points_of_pixel:.0f} readings fall into one pixel of the decoder, at most {MOST_POINTS_OF_PIXEL} are "
            "wanted; raise data.pixel_stride"
        )
    return PreparedFrame(
        key=key,
        image=as_tensor(frame.color),
        lift=lift,
        origin=torch.from_numpy(origin),
        placement=placement,
        low=(int(low[0]), int(low[1]), int(low[2])),
        xyz_bits=(x_bits, y_bits, z_bits),
        seeds=(
            sample_seed(settings.seed, epoch, drawn_by, "pairs_e"),
            sample_seed(settings.seed, epoch, drawn_by, "pairs_d"),
            sample_seed(settings.seed, epoch, drawn_by, "colors"),
        ),
    )
