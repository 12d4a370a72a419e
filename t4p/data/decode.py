"""A stored sample becomes arrays: decoded pixels and matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.doors.text import shown
from shards.errors import ShardError
from shards.images import BrokenImageError, decode_color
from shards.schema import Frame, decode_frame_depth, size_of_camera
from t4p.geometry import resize_intrinsics


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """One RGB-D frame as arrays.

    Attributes:
        color: (Hc, Wc, 3) uint8.
        depth: (H, W) uint16 along the optical axis, on the grid it was recorded on; 0 means no reading.
        depth_scale: units of `depth` per metre.
        K_color: (3, 3) intrinsics of the colour grid, pixels.
        K_depth: (3, 3) intrinsics of the depth grid, pixels.
        color_from_depth: (4, 4) depth-camera to colour-camera coordinates.
        world_from_camera: (4, 4) depth camera to world, or None.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.uint16]
    depth_scale: float
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
        depth=depth,
        depth_scale=frame.depth_scale,
        K_color=frame.K_color,
        K_depth=frame.K_depth,
        color_from_depth=frame.color_from_depth,
        world_from_camera=frame.world_from_camera,
    )


def with_color_of(frame: DecodedFrame, size: tuple[int, int]) -> DecodedFrame:
    """The frame with its colour image resized edge to edge to (height, width)."""
    found = (frame.color.shape[0], frame.color.shape[1])
    if found == size:
        return frame
    image = Image.fromarray(frame.color).resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2.0)
    return replace(frame, color=np.asarray(image), K_color=resize_intrinsics(frame.K_color, found, size))
