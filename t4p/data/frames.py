"""`t4p.frames`: the frames of a packed dataset as arrays, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import CallError
from shards.reader import DatasetReader
from t4p.data.decode import decode_frame


@dataclass(frozen=True, eq=False)
class StoredFrame:
    """One RGB-D frame of a dataset as arrays, on the grids it was recorded on.

    Attributes:
        color: (Hc, Wc, 3) uint8.
        depth: (H, W) float32, metres along the optical axis; 0 means no reading.
        K_color: (3, 3) intrinsics of the colour grid, pixels.
        K_depth: (3, 3) intrinsics of the depth grid, pixels.
        color_from_depth: (4, 4) depth-camera to colour-camera coordinates.
        world_from_camera: (4, 4) depth camera to world, or None.
        key: SCENE/FRAME, unique in its dataset, as `t4p shards show` takes it.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K_color: NDArray[np.float64]
    K_depth: NDArray[np.float64]
    color_from_depth: NDArray[np.float64]
    world_from_camera: NDArray[np.float64] | None
    key: str


def frames(url: str | os.PathLike[str]) -> Iterator[StoredFrame]:
    """The frames of a packed dataset, in the order in which they were packed.

    Args:
        url: a folder or s3://bucket/prefix.

    Returns:
        An iterator of frames: `color` (Hc, Wc, 3) uint8; `depth` (H, W) float32, metres along the optical axis, 0 where
        there is no reading; `K_color` and `K_depth` (3, 3), pixels of either grid; `color_from_depth` (4, 4);
        `world_from_camera` (4, 4) of the depth camera (x right, y down, z ahead), or None; `key`.

    Raises:
        CallError: there is no dataset, or one of scenes.
        ShardError: the dataset is damaged; while iterating, a frame is.
        StoreError: storage refused or failed.
    """
    dataset = DatasetReader(os.fspath(url))
    if dataset.manifest.sample_kind != "frames":
        raise CallError(
            f"{dataset.url}: holds {dataset.manifest.sample_kind}, wanted RGB-D frames; t4p.stream gives their points"
        )
    return _decoded(dataset)


def _decoded(dataset: DatasetReader) -> Iterator[StoredFrame]:
    for shard_index, num_samples in enumerate(dataset.samples_per_shard.tolist()):
        for sample_index in range(num_samples):
            decoded = decode_frame(dataset.read_frame(shard_index, sample_index))
            yield StoredFrame(
                color=decoded.color,
                depth=decoded.depth.astype(np.float32) / np.float32(decoded.depth_scale),
                K_color=decoded.K_color,
                K_depth=decoded.K_depth,
                color_from_depth=decoded.color_from_depth,
                world_from_camera=decoded.world_from_camera,
                key=dataset.key(shard_index, sample_index),
            )
