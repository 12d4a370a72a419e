"""From a frame to its row in the index, and from a row and a slice of a tar to the frame: neither JSON nor headers."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown
from shards.errors import ShardError
from shards.images import jpeg_size, png_size
from shards.rows import (
    COLOR_IS_PNG,
    DEPTH_IS_ZST,
    DESCRIBED,
    HAS_CRC,
    HAS_POSE,
    HAS_TIMESTAMP,
    MEMBER_KINDS,
    ROW,
    SampleRows,
)
from shards.scene import Scene
from shards.schema import (
    DEPTH_SCALES,
    MAX_SIDE,
    RIGID_TOLERANCE,
    Frame,
    Matrix,
    boxes_from_json,
    check_numbers,
    check_rigid,
    unescape_id,
)

# ROW as one call of struct: 20 assignments to fields of numpy take as long as reading the files.
_PACK = struct.Struct("<QIIHHI8I8I2H2Hdd5d5d12d12dII")
assert _PACK.size == ROW.itemsize
_NO_MATRIX = (0.0,) * 12
_SEMANTIC, _INSTANCE, _BOXES, _CAPTION = (MEMBER_KINDS.index(k) for k in ("semantic", "instance", "boxes", "caption"))


def row_of_frame(
    frame: Frame, layout: Mapping[str, tuple[int, int]], length: int, crc32c: int | None, dataset: int
) -> bytes:
    """The row of a frame that `check_frame` or `check_frame_headers` has passed, before it is sealed.

    Args:
        frame: what the slice holds; of its images the headers will do.
        layout: where its members lie in the slice, by name: offset and size.
        length: bytes of the slice.
        crc32c: over them; None where they were not read.
        dataset: position of frame.dataset among the manifest's names.

    Raises:
        ShardError: an image is larger than a row can say.
    """
    color_size = png_size(frame.color) if frame.color_format == "png" else jpeg_size(frame.color)
    depth_size = frame.depth_size or png_size(frame.depth)
    for name, size in (("color", color_size), ("depth", depth_size)):
        if size is None or max(size) > MAX_SIDE:
            raise ShardError(
                f"{frame.scene_id}/{frame.frame_id}: {name} is {size}, wanted an image of at most {MAX_SIDE} pixels a "
                "side; make it smaller, or leave the frame out"
            )
    flags = DESCRIBED | (0 if crc32c is None else HAS_CRC)
    flags |= HAS_POSE if frame.world_from_camera is not None else 0
    flags |= HAS_TIMESTAMP if frame.timestamp is not None else 0
    flags |= COLOR_IS_PNG if frame.color_format == "png" else 0
    flags |= DEPTH_IS_ZST if frame.depth_format == "zst" else 0
    pose = frame.world_from_camera
    return _PACK.pack(
        0,
        length,
        crc32c or 0,
        flags,
        dataset,
        frame.no_reading,
        *_places(layout),
        *(color_size or ()),
        *(depth_size or ()),
        frame.depth_scale,
        0.0 if frame.timestamp is None else frame.timestamp,
        *_pinhole(frame.K_depth),
        *_pinhole(frame.K_color),
        *frame.color_from_depth[:3].ravel().tolist(),
        *(_NO_MATRIX if pose is None else pose[:3].ravel().tolist()),
        0,
        0,
    )


def row_of_scene(scene: Scene, layout: Mapping[str, tuple[int, int]], length: int, crc32c: int, dataset: int) -> bytes:
    """The row of a whole scene: as `row_of_frame`."""
    place = (0, length, crc32c, DESCRIBED | HAS_CRC, dataset, 0)
    return _PACK.pack(*place, *_places(layout), *(0,) * 4, *(0.0,) * 36, len(scene.points), 0)


@dataclass(frozen=True, eq=False)
class FrameColumns:
    """What rows say of frames, taken apart once for all of them: a loader then takes views.

    Attributes:
        sound: (n,) whether the numbers of a row can be computed with and its members lie within the sample.
        member_offset, member_size: a list of a number for each kind of member, for each row.
    """

    sound: list[bool]
    flags: list[int]
    dataset: list[int]
    no_reading: list[int]
    depth_scale: list[float]
    timestamp: list[float]
    depth_size: list[tuple[int, int]]
    member_offset: list[list[int]]
    member_size: list[list[int]]
    K_depth: Matrix
    K_color: Matrix
    color_from_depth: Matrix
    world_from_camera: Matrix

    @classmethod
    def of(cls, rows: SampleRows) -> FrameColumns:
        """Kept beside the rows it was made of."""
        kept = rows.__dict__.get("_columns")
        if kept is None:
            kept = rows.__dict__["_columns"] = cls._taken_apart(rows.table)
        assert isinstance(kept, cls)
        return kept

    @classmethod
    def _taken_apart(cls, table: NDArray[np.void]) -> FrameColumns:
        color_from_depth, world_from_camera = (
            _rigid_matrices(table[name]) for name in ("color_from_depth", "world_from_camera")
        )
        offsets, sizes = table["member_offset"].astype(np.int64), table["member_size"].astype(np.int64)
        within = (offsets == 0) | (offsets + sizes <= table["length"][:, None])
        has_pose = (table["flags"] & HAS_POSE) != 0
        low, high = DEPTH_SCALES
        with np.errstate(invalid="ignore"):
            sound = within.all(axis=1) & (offsets[:, :3] > 0).all(axis=1)
            sound &= (table["depth_scale"] >= low) & (table["depth_scale"] <= high) & np.isfinite(table["timestamp"])
            sound &= _are_rigid(color_from_depth) & (~has_pose | _are_rigid(world_from_camera))
        return cls(
            sound=sound.tolist(),
            flags=table["flags"].tolist(),
            dataset=table["dataset"].tolist(),
            no_reading=table["no_reading"].tolist(),
            depth_scale=table["depth_scale"].tolist(),
            timestamp=table["timestamp"].tolist(),
            depth_size=[(width, height) for width, height in table["depth_size"].tolist()],
            member_offset=offsets.tolist(),
            member_size=sizes.tolist(),
            K_depth=_pinhole_matrices(table["K_depth"]),
            K_color=_pinhole_matrices(table["K_color"]),
            color_from_depth=color_from_depth,
            world_from_camera=world_from_camera,
        )


def frame_of_row(rows: SampleRows, i: int, key: str, data: bytes, datasets: tuple[str, ...], where: str) -> Frame:
    """The frame in a slice whose length and checksum are those of row i. Images stay encoded.

    Args:
        rows: of the slice, among others; described.
        i: position of its row.
        key: of the sample.
        data: the slice.
        datasets: names, as the manifest has them.
        where: names the sample in messages.

    Raises:
        ShardError: the row says what cannot be, or a text member is malformed.
    """
    columns = FrameColumns.of(rows)
    flags, offsets, sizes = columns.flags[i], columns.member_offset[i], columns.member_size[i]
    if columns.dataset[i] >= len(datasets) or not offsets[0] or not offsets[1]:
        raise ShardError(f"{where}: its row in the index is of no frame of this dataset; run verify, then pack again")
    members = [data[offset : offset + size] if offset else None for offset, size in zip(offsets, sizes, strict=True)]
    scene, _, frame_id = key.partition("/")
    caption, boxes = members[_CAPTION], members[_BOXES]
    try:
        frame = Frame(
            dataset=datasets[columns.dataset[i]],
            scene_id=unescape_id(scene),
            frame_id=unescape_id(frame_id),
            color=members[0] or b"",
            color_format="png" if flags & COLOR_IS_PNG else "jpg",
            depth=members[1] or b"",
            depth_scale=columns.depth_scale[i],
            K_depth=columns.K_depth[i],
            K_color=columns.K_color[i],
            color_from_depth=columns.color_from_depth[i],
            world_from_camera=columns.world_from_camera[i] if flags & HAS_POSE else None,
            timestamp=columns.timestamp[i] if flags & HAS_TIMESTAMP else None,
            semantic=members[_SEMANTIC],
            instance=members[_INSTANCE],
            caption=None if caption is None else caption.decode("utf-8"),
            boxes=None if boxes is None else boxes_from_json(boxes),
            depth_format="zst" if flags & DEPTH_IS_ZST else "png",
            depth_size=columns.depth_size[i] if flags & DEPTH_IS_ZST else None,
            no_reading=columns.no_reading[i],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{where}: a text member is malformed ({type(error).__name__}: {shown(error)})") from error
    for box in frame.boxes or ():
        check_rigid("camera_from_box", box.camera_from_box, where)
    if not columns.sound[i]:
        check_numbers(frame, where)
        raise ShardError(f"{where}: its row in the index does not fit the sample; run verify, then pack again")
    return frame


def _places(layout: Mapping[str, tuple[int, int]]) -> tuple[int, ...]:
    by_kind = {name.partition(".")[0]: place for name, place in layout.items()}
    places = [by_kind.get(kind, (0, 0)) for kind in MEMBER_KINDS]
    return (*(offset for offset, _ in places), *(size for _, size in places))


def _pinhole(K: Matrix) -> tuple[float, ...]:
    return float(K[0, 0]), float(K[0, 1]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2])


def _pinhole_matrices(numbers: NDArray[np.float64]) -> Matrix:
    """(n, 3, 3) of (n, 5)."""
    K = np.zeros((len(numbers), 3, 3))
    K[:, 0, 0], K[:, 0, 1], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = numbers.T
    K[:, 2, 2] = 1
    return K


def _rigid_matrices(numbers: NDArray[np.float64]) -> Matrix:
    """(n, 4, 4) of (n, 12)."""
    matrices = np.zeros((len(numbers), 4, 4))
    matrices[:, :3] = numbers.reshape(-1, 3, 4)
    matrices[:, 3, 3] = 1
    return matrices


def _are_rigid(matrices: Matrix) -> NDArray[np.bool_]:
    """(n,) what `check_rigid` passes, of (n, 4, 4)."""
    rotation = matrices[:, :3, :3]
    rotation = np.where(np.abs(rotation) <= 2, rotation, 0)  # no NaN in it, and no product that is too large
    error = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
    finite = np.isfinite(matrices).all(axis=(1, 2))
    rigid: NDArray[np.bool_] = finite & (error <= RIGID_TOLERANCE) & (np.linalg.det(rotation) > 0)
    return rigid
