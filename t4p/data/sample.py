"""What training needs of one frame: voxels, image and pairs, in numpy. Made in a loader process, joined in batch.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t4p.config.data import AugmentConfig
from t4p.data import transforms
from t4p.data.decode import DecodedFrame
from t4p.data.draws import sample_rng


@dataclass(frozen=True)
class SampleSettings:
    """How a frame is turned into a sample.

    Attributes:
        image_size: (height, width) the towers see, pixels.
        cell_grid: (Hc, Wc) of the dense CLIP features.
        decoder_grid: (H', W') of the 2D decoder.
        voxel_size: metres.
        num_strides: halvings between the voxels and the bottleneck.
        in_world: points in the world of the dataset where there are poses, else in upright camera axes.
        num_pairs_e, num_pairs_d: pairs drawn at most, uniformly; None keeps all.
        augment: None for validation, which also leaves the voxel grid on the origin.
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


@dataclass(frozen=True, eq=False)
class FrameSample:
    """One frame, ready to be joined with others.

    Attributes:
        key: key of the stored sample.
        image: (H, W, 3) uint8.
        voxel_coords: (V, 3) int32, unique, ascending in (x, y, z).
        voxel_features: (V, C) float32.
        num_bottleneck_voxels: rows of the bottleneck.
        pairs_e: (P, 3) int64 of (bottleneck voxel, CLIP cell, number of points they share).
        uniforms_e: (P,) float32 in (0, 1], uniform: of each of pairs_e, for a draw that knows the CLIP features.
        pairs_d: (P, 3) int64 of (voxel, decoder pixel, number of points they share).
    """

    key: str
    image: NDArray[np.uint8]
    voxel_coords: NDArray[np.int32]
    voxel_features: NDArray[np.float32]
    num_bottleneck_voxels: int
    pairs_e: NDArray[np.int64]
    uniforms_e: NDArray[np.float32]
    pairs_d: NDArray[np.int64]


def build_sample(frame: DecodedFrame, key: str, epoch: int, settings: SampleSettings) -> FrameSample:
    """Lift, augment, voxelise and pair one frame; every draw is keyed by (seed, epoch, key)."""
    points = transforms.lift_frame(
        frame, settings.image_size, settings.pixel_stride, settings.max_depth, settings.in_world
    )
    grid_rng = None
    if settings.augment is not None:
        points = transforms.augment(points, settings.augment, sample_rng(settings.seed, epoch, key, "augment"))
        grid_rng = sample_rng(settings.seed, epoch, key, "grid")
    voxels = transforms.voxelize_cloud(
        points, settings.voxel_size, settings.num_strides, settings.point_features, grid_rng
    )
    bottleneck_of_point = voxels.bottleneck_of_voxel[voxels.voxel_of_point]
    cell = transforms.cell_of_pixel(points.pixel_of_point, settings.image_size, settings.cell_grid)
    pixel = transforms.cell_of_pixel(points.pixel_of_point, settings.image_size, settings.decoder_grid)
    pairs_e = transforms.distinct_pairs(bottleneck_of_point, cell)
    pairs_d = transforms.distinct_pairs(voxels.voxel_of_point, pixel)
    if settings.num_pairs_e is not None:
        pairs_e = transforms.draw_pairs(pairs_e, settings.num_pairs_e, sample_rng(settings.seed, epoch, key, "pairs_e"))
    if settings.num_pairs_d is not None:
        pairs_d = transforms.draw_pairs(pairs_d, settings.num_pairs_d, sample_rng(settings.seed, epoch, key, "pairs_d"))
    # The name of its stream is from 0.1.0, whose draws stay.
    uniforms_e = 1 - sample_rng(settings.seed, epoch, key, "lots_e").random(len(pairs_e), np.float32)
    return FrameSample(
        key=key,
        image=points.image,
        voxel_coords=voxels.voxel_coords,
        voxel_features=voxels.voxel_features,
        num_bottleneck_voxels=voxels.num_bottleneck_voxels,
        pairs_e=pairs_e,
        uniforms_e=uniforms_e,
        pairs_d=pairs_d,
    )
