"""One frame of raw data as every reader lists it: where its images are, and its numbers. One way to load it.

A reader finds files and says what they are; what follows from that is done here, once: images through one gate, K
brought to the size of its image, depth of any coding, doubtful depth left out, labels brought to the depth grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.headers import jpeg_size, png_size
from shards.images import (
    BrokenImageError,
    decode_labels,
    encode_depth,
    encode_labels,
    is_depth_png,
    kind_of_color,
    require_ids,
    without_location,
)
from shards.schema import Box, Frame, Matrix
from shards.sources.cameras import IDENTITY, Camera, Numbers16
from shards.sources.depth_codings import decode, units_of_metres
from shards.sources.raw_files import Where, read_bytes
from shards.sources.sunrgbd_mat import points_of_view, sunrgbd_labels

# Labels that are no image: a function a row, from the bytes of a file to (H, W) ids.
LABEL_CODINGS: Mapping[str, Callable[[bytes], NDArray[np.uint16]]] = {"sunrgbd": sunrgbd_labels}
# Depth as points, metres: from the bytes of a file to (N, 3).
POINT_CODINGS: Mapping[str, Callable[[bytes], NDArray[np.float64]]] = {"sunrgbd_points": points_of_view}


@dataclass(frozen=True, slots=True)
class DepthFiles:
    """The depth image of a frame.

    Attributes:
        where: it lies.
        scale: units per metre.
        coding: of DEPTH_CODINGS, or "image".
        size: (width, height), of codings without a header.
        no_reading: value that means none besides 0; 0 for none.
        confidence: image of how sure each pixel is, on the same grid; None without one.
        confidence_levels: what it holds for low, middle and high.
        min_confidence: place among these, 0 to 2, below which a pixel is no reading.
        camera_from_points: of codings that hold points instead of an image.
    """

    where: Where
    scale: float
    coding: str = "image"
    size: tuple[int, int] | None = None
    no_reading: int = 0
    confidence: Where | None = None
    confidence_levels: tuple[int, int, int] = (0, 1, 2)
    min_confidence: int = 0
    camera_from_points: Numbers16 | None = None


@dataclass(frozen=True, slots=True)
class BoxNumbers:
    """An annotated object: label, its frame in the camera's, full sizes, metres."""

    label: str
    camera_from_box: Numbers16
    size: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class FrameFiles:
    """A frame that is not loaded yet: light, picklable, and enough to tell whether its files changed.

    Attributes:
        dataset: name of the format.
        scene_id: name of the scene, any text.
        frame_id: name of the frame, unique in the scene.
        color: its colour image, JPEG or PNG.
        depth: its depth image.
        color_camera: intrinsics of the colour image.
        depth_camera: intrinsics of the depth image.
        world_from_camera: of the depth camera; None where it is not known.
        color_from_depth: between the two cameras.
        timestamp: seconds, of the depth image.
        semantic, instance: images of ids, on the grid that `labels_from` names.
        labels_coding: of LABEL_CODINGS, or "png".
        boxes: None without annotation.
        caption: a sentence about it.
    """

    dataset: str
    scene_id: str
    frame_id: str
    color: Where
    depth: DepthFiles
    color_camera: Camera
    depth_camera: Camera
    world_from_camera: Numbers16 | None = None
    color_from_depth: Numbers16 = IDENTITY
    timestamp: float | None = None
    semantic: Where | None = None
    instance: Where | None = None
    labels_from: str = "depth"
    labels_coding: str = "png"
    boxes: tuple[BoxNumbers, ...] | None = None
    caption: str | None = None

    @property
    def origin(self) -> str:
        """Where the frame lies, for messages."""
        return f"{self.color}, {self.depth.where}"


def read_frame(files: FrameFiles) -> Frame:
    """Load one frame.

    Raises:
        ShardError: naming the file that is wrong.
    """
    color = without_location(read_bytes(files.color))
    color_format = _kind(color, files.color)
    color_size = (png_size if color_format == "png" else jpeg_size)(color)
    K_color = files.color_camera.matrix(color_size, str(files.color))
    png, depth_size = _read_depth(files.depth, files.depth_camera, color_size)
    K_depth = files.depth_camera.matrix(depth_size, str(files.depth.where))
    pose = files.world_from_camera
    frame = Frame(
        dataset=files.dataset,
        scene_id=files.scene_id,
        frame_id=files.frame_id,
        color=color,
        color_format=color_format,
        depth=png,
        depth_scale=files.depth.scale,
        K_depth=K_depth,
        K_color=K_color,
        color_from_depth=_matrix(files.color_from_depth),
        world_from_camera=None if pose is None else _matrix(pose),
        timestamp=files.timestamp,
        semantic=_read_labels(files.semantic, files.labels_coding),
        instance=_read_labels(files.instance, files.labels_coding),
        boxes=None
        if files.boxes is None
        else tuple(Box(box.label, _matrix(box.camera_from_box), box.size) for box in files.boxes),
        caption=files.caption,
        no_reading=files.depth.no_reading,
    )
    return frame if files.labels_from == "depth" else _with_labels_from_depth(frame, files)


def _matrix(numbers: Numbers16) -> Matrix:
    return np.array(numbers, np.float64).reshape(4, 4)


def _kind(data: bytes, where: Where) -> str:
    try:
        return kind_of_color(data)
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}") from error


def _read_labels(where: Where | None, coding: str) -> bytes | None:
    """A PNG of ids, the bytes as found where they are one."""
    if where is None:
        return None
    data = read_bytes(where)
    try:
        if coding != "png":
            return encode_labels(LABEL_CODINGS[coding](data))
        require_ids(data)
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove it to pack without labels") from error
    return data


def _read_depth(
    depth: DepthFiles, camera: Camera, color_size: tuple[int, int] | None
) -> tuple[bytes, tuple[int, int] | None]:
    """A 16-bit grayscale PNG, the bytes as found where they already are one, and (width, height)."""
    data = read_bytes(depth.where)
    if depth.coding == "image" and depth.min_confidence == 0 and is_depth_png(data):
        return data, png_size(data)
    if depth.camera_from_points is not None:
        pixels = _depth_of_points(data, depth, camera, color_size)
        return encode_depth(pixels), (pixels.shape[1], pixels.shape[0])
    pixels = decode(depth.coding, data, depth.size, depth.scale, str(depth.where))
    if depth.min_confidence and depth.confidence is not None:
        pixels = np.where(_is_sure(depth, pixels.shape), pixels, 0).astype(np.uint16)
    return encode_depth(pixels), (pixels.shape[1], pixels.shape[0])


def _depth_of_points(
    data: bytes, depth: DepthFiles, camera: Camera, size: tuple[int, int] | None
) -> NDArray[np.uint16]:
    """(H, W) units of the nearest point on each pixel of an image of (width, height) `size`."""
    where = str(depth.where)
    try:
        points = POINT_CODINGS[depth.coding](data)
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
    if size is None:
        raise ShardError(f"{where}: the size of the colour image is not known, and the points lie on its pixels")
    assert depth.camera_from_points is not None
    m, K = _matrix(depth.camera_from_points), camera.matrix(size, where)
    # Not by BLAS, which rounds otherwise on other processors.
    x, y, z = (points[:, 0] * m[i, 0] + points[:, 1] * m[i, 1] + points[:, 2] * m[i, 2] + m[i, 3] for i in range(3))
    ahead = z > 0
    column = np.rint(K[0, 0] * x[ahead] / z[ahead] + K[0, 2]).astype(np.int64)
    row = np.rint(K[1, 1] * y[ahead] / z[ahead] + K[1, 2]).astype(np.int64)
    inside = (column >= 0) & (column < size[0]) & (row >= 0) & (row < size[1])
    metres = np.full((size[1], size[0]), np.inf)
    np.minimum.at(metres, (row[inside], column[inside]), z[ahead][inside])
    return units_of_metres(metres, depth.scale)


def _is_sure(depth: DepthFiles, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """(H, W) whether a pixel's confidence is high enough."""
    assert depth.confidence is not None
    where = str(depth.confidence)
    try:
        levels = decode_labels(read_bytes(depth.confidence))
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
    if levels.shape != shape:
        raise ShardError(
            f"{where}: the confidence is {levels.shape[1]}x{levels.shape[0]}, the depth {shape[1]}x{shape[0]}; "
            "restore the file, or take all depth with --min-confidence 0"
        )
    if levels.size and levels.max() > depth.confidence_levels[-1]:
        raise ShardError(
            f"{where}: holds {levels.max()}, wanted levels up to {depth.confidence_levels[-1]}; take all depth with "
            "--min-confidence 0"
        )
    sure: NDArray[np.bool_] = levels >= depth.confidence_levels[depth.min_confidence]
    return sure


def _with_labels_from_depth(frame: Frame, files: FrameFiles) -> Frame:
    """The frame with its labels, which are on the grid of the colour image, looked up for every pixel of depth."""
    depth = decode("image", frame.depth, None, 1.0, files.origin)
    if frame.no_reading:
        depth = np.where(depth == frame.no_reading, 0, depth).astype(np.uint16)
    changed: dict[str, Any] = {}
    for name, where in (("semantic", files.semantic), ("instance", files.instance)):
        data: bytes | None = getattr(frame, name)
        if data is None:
            continue
        try:
            labels = decode_labels(data)
        except BrokenImageError as error:
            raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
        K_color = files.color_camera.matrix(labels.shape[::-1], str(where))
        metres = depth / frame.depth_scale
        rows, columns, seen = pixels_in_color(metres, frame.K_depth, K_color, frame.color_from_depth, labels.shape)
        changed[name] = encode_labels(np.where(seen, labels[rows, columns], 0).astype(labels.dtype))
    return replace(frame, **changed)


def pixels_in_color(
    depth: NDArray[np.floating], K_depth: Matrix, K_color: Matrix, color_from_depth: Matrix, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Where every pixel of a depth image lies in the colour image, the nearest pixel.

    Args:
        depth: (H, W) metres, 0 without a reading.
        shape: (rows, columns) of the colour image.

    Returns:
        rows, columns: (H, W), in range.
        seen: (H, W) whether there is a reading, and it lies in the colour image.
    """
    v, u = np.indices(depth.shape, dtype=np.float64)
    x, y = (u - K_depth[0, 2]) / K_depth[0, 0] * depth, (v - K_depth[1, 2]) / K_depth[1, 1] * depth
    m = color_from_depth
    x, y, z = (m[i, 0] * x + m[i, 1] * y + m[i, 2] * depth + m[i, 3] for i in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = np.rint(K_color[0, 0] * x / z + K_color[0, 2])
        rows = np.rint(K_color[1, 1] * y / z + K_color[1, 2])
        seen = (depth > 0) & (z > 0) & (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    return np.where(seen, rows, 0).astype(np.int64), np.where(seen, columns, 0).astype(np.int64), seen
