"""A stored sample becomes arrays: decoded pixels, metres, matrices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown
from shards.errors import ShardError
from shards.images import BrokenImageError, decode_color
from shards.schema import Frame, decode_frame_depth, size_of_camera


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One RGB-D frame as arrays, on the grids it was recorded on.

    Attributes:
        color: (Hc, Wc, 3) uint8.
        depth: (H, W) float32, metres along the optical axis; 0 means no reading.
        K_color: (3, 3) intrinsics of the colour grid, pixels.
        K_depth: (3, 3) intrinsics of the depth grid, pixels.
        color_from_depth: (4, 4) depth-camera to colour-camera coordinates.
        world_from_camera: (4, 4) depth camera to world, or None.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.float32]
    K_color: NDArray[np.float64]
    K_depth: NDArray[np.float64]
    color_from_depth: NDArray[np.float64]
    world_from_camera: NDArray[np.float64] | None


def decode_frame(frame: Frame) -> DecodedFrame:
    """Decode the images of a frame.

    Raises:
        ShardError: an image cannot be decoded, has another size than its camera, or the depth is not a 16-bit grey one.
    """
    name = f"{shown(frame.dataset)}, sample {shown(frame.scene_id)}/{shown(frame.frame_id)}"
    try:
        # The chunks of PNGs are not held against their CRCs: the crc32c of the sample was.
        fits = size_of_camera("color", frame.K_color, name)
        color = decode_color(frame.color, frame.color_format, fits, check_chunks=False)
        depth = decode_frame_depth(frame, name, check_chunks=False)
    except BrokenImageError as error:
        raise ShardError(f"{name}: {error}; run `t4p shards verify` and repack") from error
    return DecodedFrame(
        color=color,
        depth=(depth / np.float32(frame.depth_scale)).astype(np.float32),
        K_color=frame.K_color,
        K_depth=frame.K_depth,
        color_from_depth=frame.color_from_depth,
        world_from_camera=frame.world_from_camera,
    )
