"""A stored sample becomes arrays: decoded pixels and matrices."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.doors.text import shown
from shards.errors import ShardError
from shards.images import BrokenImageError, ReducedColor, decode_reduced_color
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


def decode_frame(frame: Frame, color_size: tuple[int, int] | None = None) -> DecodedFrame:
    """Decode the images of a frame.

    Args:
        color_size: (height, width) that the colour image is resized to, edge to edge; a JPEG that is more than twice as
            large is decoded at a part of its size. None leaves it as it was recorded.

    Raises:
        ShardError: an image cannot be decoded, has another size than its camera, or the depth is not a 16-bit grey one.
    """
    name = f"{shown(frame.dataset)}, sample {shown(frame.scene_id)}/{shown(frame.frame_id)}"
    try:
        # The chunks of PNGs are not held against their CRCs: the crc32c of the sample was.
        fits = size_of_camera("color", frame.K_color, name)
        color = decode_reduced_color(frame.color, frame.color_format, color_size, fits, check_chunks=False)
        depth = decode_frame_depth(frame, name, check_chunks=False)
    except BrokenImageError as error:
        raise ShardError(f"{name}: {error}; run `t4p shards verify` and repack") from error
    size = color_size or color.size
    return DecodedFrame(
        color=_resized(color, size),
        depth=depth,
        depth_scale=frame.depth_scale,
        K_color=frame.K_color if size == color.size else resize_intrinsics(frame.K_color, color.size, size),
        K_depth=frame.K_depth,
        color_from_depth=frame.color_from_depth,
        world_from_camera=frame.world_from_camera,
    )


def with_color_of(frame: DecodedFrame, size: tuple[int, int]) -> DecodedFrame:
    """The frame with its colour image resized edge to edge to (height, width)."""
    found = (frame.color.shape[0], frame.color.shape[1])
    if found == size:
        return frame
    color = _resized(ReducedColor(frame.color, found, 1), size)
    return replace(frame, color=color, K_color=resize_intrinsics(frame.K_color, found, size))


def _resized(color: ReducedColor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The image at (height, width), edge to edge of the whole one, which its last pixels may reach beyond."""
    if (size[0] * color.reduction, size[1] * color.reduction) == color.size:
        return color.pixels
    height, width = (extent / color.reduction for extent in color.size)
    image = Image.fromarray(color.pixels)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR, box=(0, 0, width, height), reducing_gap=2.0))
