"""The frames of one rank's micro-batch, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import ShardError
from shards.sample import Sample as StoredSample
from shards.schema import Frame
from t4p.data.decode import decode_frame
from t4p.data.hashing import draw_words, uniforms_of
from t4p.data.pairing import pair_frames
from t4p.data.sample import PreparedFrame, SampleSettings, prepare_frame
from t4p.data.tensors import moved
from t4p.data.transforms import num_channels


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


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """Frames whose points an accelerator makes: decoded pixels and matrices are what is copied to it."""

    frames: tuple[PreparedFrame, ...]
    settings: SampleSettings

    def to(self, device: torch.device) -> Batch:
        """Copy the frames to `device` and make their batch there, which the host waits for twice."""
        return build_batch([frame.to(device) for frame in self.frames], self.settings).to(device)


@dataclass(frozen=True)
class _FrameRecipe:
    """Stored frames to prepared ones.

    Attributes:
        settings: how.
    """

    settings: SampleSettings

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> PreparedFrame:
        """Decode one frame and compose its matrices."""
        if not isinstance(stored, Frame):
            raise ShardError(f"sample {key}: is a scene, and pre-training needs RGB-D frames")
        frame = decode_frame(stored, self.settings.image_size)
        return prepare_frame(frame, key, epoch, self.settings, dataset_index)


@dataclass(frozen=True)
class PairRecipe(_FrameRecipe):
    """Stored frames to the batches of pre-training, all of it in the loader: see `t4p.data.stream.Recipe`."""

    def join(self, samples: Sequence[PreparedFrame]) -> Batch:
        """Lift, voxelise and pair frames."""
        return build_batch(samples, self.settings)


@dataclass(frozen=True)
class PreparedRecipe(_FrameRecipe):
    """The same for a training on an accelerator, which makes the points."""

    def join(self, samples: Sequence[PreparedFrame]) -> PreparedBatch:
        """Frames side by side."""
        return PreparedBatch(tuple(samples), self.settings)


def build_batch(frames: Sequence[PreparedFrame], settings: SampleSettings) -> Batch:
    """Make the points, voxels and pairs of frames, on the device of their tensors.

    Args:
        frames: may be none.

    Raises:
        ValueError: they are too many for their extent.
    """
    if not frames:
        return _empty_batch(settings)
    paired = pair_frames(frames, settings)
    pairs_e, pairs_d = paired.pairs_e, paired.pairs_d
    num_cells, num_pixels = (rows * cols for rows, cols in (settings.cell_grid, settings.decoder_grid))
    return Batch(
        keys=tuple(frame.key for frame in frames),
        images=torch.stack([frame.image for frame in frames]),
        voxel_coords=paired.voxel_coords,
        voxel_features=paired.voxel_features,
        voxel_of_pair_e=pairs_e.voxel,
        cell_of_pair_e=pairs_e.frame * num_cells + pairs_e.place,
        points_of_pair_e=pairs_e.num_points,
        uniform_of_pair_e=uniforms_of(draw_words(pairs_e.words, pairs_e.place)),  # the words were used for the pairs
        voxel_of_pair_d=pairs_d.voxel,
        pixel_of_pair_d=pairs_d.frame * num_pixels + pairs_d.place,
        points_of_pair_d=pairs_d.num_points,
    )


def _empty_batch(settings: SampleSettings) -> Batch:
    nothing = torch.zeros(0, dtype=torch.int64)
    return Batch(
        keys=(),
        images=torch.zeros(0, *settings.image_size, 3, dtype=torch.uint8),
        voxel_coords=torch.zeros(0, 4, dtype=torch.int32),
        voxel_features=torch.zeros(0, num_channels(settings.point_features)),
        voxel_of_pair_e=nothing,
        cell_of_pair_e=nothing,
        points_of_pair_e=nothing,
        uniform_of_pair_e=torch.zeros(0),
        voxel_of_pair_d=nothing,
        pixel_of_pair_d=nothing,
        points_of_pair_d=nothing,
    )
