"""The frames of one rank's micro-batch, joined into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from shards.errors import ShardError
from shards.sample import Sample as StoredSample
from shards.schema import Frame
from t4p.data.decode import decode_frame
from t4p.data.sample import FrameSample, SampleSettings, build_sample
from t4p.data.transforms import num_channels

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


@dataclass(frozen=True, eq=False)
class Batch:
    """F frames side by side; F may be 0.

    Attributes:
        keys: keys of the stored samples, in order.
        images: (F, H, W, 3) uint8.
        voxel_coords: (V, 4) int32, (frame, x, y, z), ascending: the canonical row order of the sparse network.
        voxel_features: (V, C) float32.
        voxel_of_pair_e: (Pe,) int64 row of the bottleneck.
        cell_of_pair_e: (Pe,) int64 row of the CLIP cells of all frames, (frame, row, col) flattened.
        points_of_pair_e: (Pe,) int64 number of points that lie in both.
        uniform_of_pair_e: (Pe,) float32 in (0, 1], uniform, for `t4p.losses.balanced_draw`.
        voxel_of_pair_d: (Pd,) int64 row of `voxel_coords`.
        pixel_of_pair_d: (Pd,) int64 row of the decoder pixels of all frames, flattened likewise.
        points_of_pair_d: (Pd,) int64 number of points that lie in both.
    """

    keys: tuple[str, ...]
    images: Tensor
    voxel_coords: Tensor
    voxel_features: Tensor
    voxel_of_pair_e: Tensor
    cell_of_pair_e: Tensor
    points_of_pair_e: Tensor
    uniform_of_pair_e: Tensor
    voxel_of_pair_d: Tensor
    pixel_of_pair_d: Tensor
    points_of_pair_d: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return moved(self, device)


def moved(record: Record, device: torch.device) -> Record:
    """A record with its tensors on `device`."""
    found = {field.name: getattr(record, field.name) for field in fields(record)}
    tensors = {name: value.to(device, non_blocking=True) for name, value in found.items() if isinstance(value, Tensor)}
    return replace(record, **tensors)


@dataclass(frozen=True)
class PairRecipe:
    """Stored frames to the batches of pre-training: see `t4p.data.stream.Recipe`."""

    settings: SampleSettings

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> FrameSample:
        """Decode, lift, augment, voxelise and pair one frame."""
        if not isinstance(stored, Frame):
            raise ShardError(f"sample {key}: is a scene, and pre-training needs RGB-D frames")
        return build_sample(decode_frame(stored), key, epoch, self.settings)

    def join(self, samples: Sequence[FrameSample]) -> Batch:
        """Join frames with the sizes that the settings imply."""
        settings = self.settings
        return collate(
            samples,
            image_size=settings.image_size,
            num_channels=num_channels(settings.point_features),
            num_cells=settings.cell_grid[0] * settings.cell_grid[1],
            num_pixels=settings.decoder_grid[0] * settings.decoder_grid[1],
        )


def collate(
    samples: Sequence[FrameSample],
    image_size: tuple[int, int],
    num_channels: int,
    num_cells: int,
    num_pixels: int,
) -> Batch:
    """Join samples, moving every row index by the rows of the frames before.

    Args:
        samples: may be empty.
        image_size: (height, width), for the shape of an empty batch.
        num_channels: C, likewise.
        num_cells: CLIP cells of one frame.
        num_pixels: decoder pixels of one frame.
    """
    coords, pairs_e, pairs_d = [np.zeros((0, 4), np.int32)], [np.zeros((0, 3), np.int64)], [np.zeros((0, 3), np.int64)]
    features, uniforms_e = [np.zeros((0, num_channels), np.float32)], [np.zeros(0, np.float32)]
    images = np.zeros((len(samples), *image_size, 3), np.uint8)
    num_voxels = num_bottleneck_voxels = 0
    for frame_index, sample in enumerate(samples):
        images[frame_index] = sample.image
        coords.append(np.pad(sample.voxel_coords, ((0, 0), (1, 0)), constant_values=frame_index))
        features.append(sample.voxel_features)
        pairs_e.append(sample.pairs_e + np.array((num_bottleneck_voxels, frame_index * num_cells, 0), np.int64))
        uniforms_e.append(sample.uniforms_e)
        pairs_d.append(sample.pairs_d + np.array((num_voxels, frame_index * num_pixels, 0), np.int64))
        num_voxels += len(sample.voxel_coords)
        num_bottleneck_voxels += sample.num_bottleneck_voxels
    joined_e, joined_d = np.concatenate(pairs_e), np.concatenate(pairs_d)
    return Batch(
        keys=tuple(sample.key for sample in samples),
        images=torch.from_numpy(images),
        voxel_coords=torch.from_numpy(np.concatenate(coords)),
        voxel_features=torch.from_numpy(np.concatenate(features)),
        voxel_of_pair_e=torch.from_numpy(joined_e[:, 0].copy()),
        cell_of_pair_e=torch.from_numpy(joined_e[:, 1].copy()),
        points_of_pair_e=torch.from_numpy(joined_e[:, 2].copy()),
        uniform_of_pair_e=torch.from_numpy(np.concatenate(uniforms_e)),
        voxel_of_pair_d=torch.from_numpy(joined_d[:, 0].copy()),
        pixel_of_pair_d=torch.from_numpy(joined_d[:, 1].copy()),
        points_of_pair_d=torch.from_numpy(joined_d[:, 2].copy()),
    )
