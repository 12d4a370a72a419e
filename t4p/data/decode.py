"""A stored sample becomes arrays: decoded pixels, metres, matrices."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.errors import ShardError
from shards.schema import Frame


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
        ShardError: an image cannot be decoded, or the depth is not a 16-bit grey one.
    """
    name = f"{frame.dataset}, sample {frame.scene_id}/{frame.frame_id}"
    try:
        with Image.open(io.BytesIO(frame.color)) as image:
            color = np.asarray(image.convert("RGB"))
        with Image.open(io.BytesIO(frame.depth)) as image:
            depth = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise ShardError(f"{name}: an image cannot be decoded ({error}); run `t4p shards verify` and repack") from error
    if depth.ndim != 2 or depth.dtype.itemsize < 2:
        raise ShardError(f"{name}: depth is {depth.dtype} of shape {depth.shape}, wanted a 16-bit grey image; repack")
    return DecodedFrame(
        color=color,
        depth=(depth / np.float32(frame.depth_scale)).astype(np.float32),
        K_color=frame.K_color,
        K_depth=frame.K_depth,
        color_from_depth=frame.color_from_depth,
        world_from_camera=frame.world_from_camera,
    )
