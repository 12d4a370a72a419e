"""What one packed frame is: the Frame record, its key, its members in a tar, and the checks every frame must pass."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.doors.json_text import parse_json
from shards.doors.text import shown
from shards.errors import ShardError
from shards.images import BrokenImageError, Fits, decode_color, decode_depth, decode_labels

FORMAT_VERSION = 2
READ_VERSIONS = (1, 2)
# Of a USTAR header: the field of a name, and the one of the folders before it where that is too short.
MAX_NAME_BYTES, MAX_PREFIX_BYTES = 100, 155
COLOR_MEMBERS = {"color.jpg": "jpg", "color.png": "png"}
DEPTH_MEMBERS = {"depth.png": "png", "depth.zst": "zst"}
MEMBERS = (
    *COLOR_MEMBERS,
    *DEPTH_MEMBERS,
    "meta.json",
    "semantic.png",
    "instance.png",
    "boxes.json",
    "caption.txt",
)
LONGEST_MEMBER_BYTES = max(len(name) for name in MEMBERS)
# The principal point of a camera lies near the middle of its image. Intrinsics that belong to another resolution put
# it outside this share of the width or height (the usual mix-ups are factors of 4/3 to 2: 1296 against 640 columns).
PRINCIPAL_POINT_SHARE = (0.4, 0.6)
DEPTH_SCALES = (1e-3, 1e9)  # units per metre, from kilometres to nanometres
_LAST_ROW_TOLERANCE = 1e-5
RIGID_TOLERANCE = 0.02  # recorded rotations carry few digits: 7-Scenes is orthonormal to about 1e-3
KEY = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+")
MAX_SIDE = (1 << 16) - 1  # pixels; what 16 bits hold
_MAX_META_BYTES = 1 << 20
_PLAIN_ID = re.compile(r"[A-Za-z0-9-]+")
Matrix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Box:
    """An oriented box around an object.

    Attributes:
        label: class name.
        camera_from_box: (4, 4) rigid, metres; the box is centred on its own origin.
        size: full extents along the box's own x, y, z, metres.
    """

    label: str
    camera_from_box: Matrix
    size: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Frame:
    """One RGB-D view in the normal form that every source yields and every dataset holds.

    Attributes:
        dataset: name of the raw format it came from.
        scene_id: original scene name, any text.
        frame_id: original frame name, any text, unique within the scene.
        color: encoded image, the bytes as found.
        color_format: "jpg" or "png".
        depth: 16-bit grayscale PNG, or raw little-endian uint16 rows in a zstd frame; 0 means no reading.
        depth_scale: units of depth per metre.
        K_depth: (3, 3) intrinsics of the depth image, pixels.
        K_color: (3, 3) intrinsics of the colour image, pixels.
        color_from_depth: (4, 4) rigid, depth camera to colour camera, metres.
        world_from_camera: (4, 4) rigid, depth camera (x right, y down, z ahead) to world, metres; None if unknown.
        timestamp: seconds, of the depth image; None if unknown.
        semantic: PNG of class ids on the depth grid; None without labels.
        instance: PNG of instance ids on the depth grid; None without labels.
        caption: a sentence about the view; None without one.
        boxes: objects in view; None without annotation (an empty tuple means annotated and empty).
        depth_format: "png" or "zst".
        depth_size: (width, height) of zst depth, which has no header to say it; None of a PNG.
        no_reading: value of depth that means no reading besides 0; 0 for none.
    """

    dataset: str
    scene_id: str
    frame_id: str
    color: bytes
    color_format: str
    depth: bytes
    depth_scale: float
    K_depth: Matrix
    K_color: Matrix
    color_from_depth: Matrix
    world_from_camera: Matrix | None = None
    timestamp: float | None = None
    semantic: bytes | None = None
    instance: bytes | None = None
    caption: str | None = None
    boxes: tuple[Box, ...] | None = None
    depth_format: str = "png"
    depth_size: tuple[int, int] | None = None
    no_reading: int = 0


def escape_id(text: str) -> str:
    """Spell an id with letters, digits and "-" only; every other UTF-8 byte becomes _XX (two hex digits).

    webdataset cuts a member's name at the first dot and skips names in double underscores, so neither may appear.
    The spelling is unique: different ids never collide. Bytes of a file name that are not UTF-8 are kept.

    Raises:
        ShardError: the id is empty or cannot be spelled as bytes.
    """
    if not text:
        raise ShardError("an id is empty: scenes and frames need a name")
    if _PLAIN_ID.fullmatch(text):
        return text
    try:
        raw = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ShardError(f"id {text!r} is not valid text ({error.reason}); rename it") from error
    return re.sub(rb"[^A-Za-z0-9-]", lambda match: b"_%02X" % match[0][0], raw).decode("ascii")


def unescape_id(escaped: str) -> str:
    """Undo `escape_id`."""
    if "_" not in escaped:
        return escaped
    raw = re.sub(rb"_([0-9A-F]{2})", lambda match: bytes([int(match[1], 16)]), escaped.encode("ascii"))
    return raw.decode("utf-8", "surrogateescape")


def sample_key(scene_id: str, frame_id: str) -> str:
    """The name of a frame in a dataset, SCENE/FRAME, escaped.

    Raises:
        ShardError: an id is empty, or the longest member name of this frame would not fit a USTAR header.
    """
    scene, frame = escape_id(scene_id), escape_id(frame_id)
    room_of_frame = MAX_NAME_BYTES - 1 - LONGEST_MEMBER_BYTES  # once the scene has moved to the prefix
    if len(scene) + 1 + len(frame) > room_of_frame and (len(scene) > MAX_PREFIX_BYTES or len(frame) > room_of_frame):
        raise ShardError(
            f"scene {scene_id!r}, frame {frame_id!r}: the key {scene}/{frame} has {len(scene)} and {len(frame)} bytes "
            f"and a tar name leaves room for {MAX_PREFIX_BYTES} and {room_of_frame}; shorten the folder or file names"
        )
    return f"{scene}/{frame}"


def is_key(text: str) -> bool:
    """Whether a text is the key of a sample: SCENE/FRAME, escaped."""
    return KEY.fullmatch(text) is not None


def members_of_frame(frame: Frame) -> dict[str, bytes]:
    """The files that hold one frame in a tar, by the name after the key."""
    meta: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "dataset": frame.dataset,
        "scene_id": frame.scene_id,
        "frame_id": frame.frame_id,
        "depth_scale": frame.depth_scale,
        "K_depth": frame.K_depth.tolist(),
        "K_color": frame.K_color.tolist(),
        "color_from_depth": frame.color_from_depth.tolist(),
        "world_from_camera": None if frame.world_from_camera is None else frame.world_from_camera.tolist(),
        "timestamp": frame.timestamp,
        "no_reading": frame.no_reading,
    }
    if frame.depth_size is not None:
        meta["depth_size"] = list(frame.depth_size)
    members = {
        f"color.{frame.color_format}": frame.color,
        f"depth.{frame.depth_format}": frame.depth,
        "meta.json": json_bytes(meta),
    }
    if frame.semantic is not None:
        members["semantic.png"] = frame.semantic
    if frame.instance is not None:
        members["instance.png"] = frame.instance
    if frame.caption is not None:
        members["caption.txt"] = frame.caption.encode("utf-8")
    if frame.boxes is not None:
        boxes = [
            {"label": box.label, "camera_from_box": box.camera_from_box.tolist(), "size": list(box.size)}
            for box in frame.boxes
        ]
        members["boxes.json"] = json_bytes(boxes)
    return members


def frame_from_members(key: str, members: Mapping[str, bytes]) -> Frame:
    """Read a frame back from its files. Images stay encoded; `check_frame` decodes them.

    Raises:
        ShardError: a member is missing, unknown or malformed, a number is none to compute with, or the ids in meta.json
            do not spell this key.
    """
    if unknown := sorted(set(members) - set(MEMBERS)):
        raise ShardError(
            f"sample {key}: unknown member {shown(unknown[0])}; format version {FORMAT_VERSION} has {MEMBERS}"
        )
    color_name, depth_name = (_one_of(names, key, members) for names in (COLOR_MEMBERS, DEPTH_MEMBERS))
    if "meta.json" not in members:
        raise ShardError(f"sample {key}: member meta.json is missing, found {sorted(members)}; pack it again")
    try:
        meta = read_meta(key, members["meta.json"])
        world_from_camera = meta["world_from_camera"]
        timestamp = meta["timestamp"]
        frame = Frame(
            dataset=str(meta["dataset"]),
            scene_id=str(meta["scene_id"]),
            frame_id=str(meta["frame_id"]),
            color=members[color_name],
            color_format=COLOR_MEMBERS[color_name],
            depth=members[depth_name],
            depth_scale=float(meta["depth_scale"]),
            K_depth=matrix_from_json(meta["K_depth"], 3),
            K_color=matrix_from_json(meta["K_color"], 3),
            color_from_depth=matrix_from_json(meta["color_from_depth"], 4),
            world_from_camera=None if world_from_camera is None else matrix_from_json(world_from_camera, 4),
            timestamp=None if timestamp is None else float(timestamp),
            semantic=members.get("semantic.png"),
            instance=members.get("instance.png"),
            caption=members["caption.txt"].decode("utf-8") if "caption.txt" in members else None,
            boxes=boxes_from_json(members["boxes.json"]) if "boxes.json" in members else None,
            depth_format=DEPTH_MEMBERS[depth_name],
            depth_size=_depth_size(meta["depth_size"]) if depth_name == "depth.zst" else None,
            no_reading=_no_reading(meta["no_reading"]) if meta["format_version"] > 1 else 0,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"sample {key}: a text member is malformed ({type(error).__name__}: {shown(error)})"
        ) from error
    if sample_key(frame.scene_id, frame.frame_id) != key:
        scene_id, frame_id = shown(frame.scene_id), shown(frame.frame_id)
        raise ShardError(f"sample {key}: meta.json is of scene '{scene_id}', frame '{frame_id}'")
    check_numbers(frame, f"sample {key}")
    return frame


def _one_of(names: Mapping[str, str], key: str, members: Mapping[str, bytes]) -> str:
    found = [name for name in names if name in members]
    if len(found) != 1:
        raise ShardError(
            f"sample {key}: wanted exactly one of {', '.join(names)}, found {', '.join(found) or 'none'}; pack it again"
        )
    return found[0]


def _depth_size(value: Any) -> tuple[int, int]:
    width, height = value
    if not (type(width) is type(height) is int and 0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"depth_size is {shown(value, 40)}, wanted width and height in pixels")
    return width, height


def _no_reading(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_SIDE:
        raise ValueError(f"no_reading is {shown(repr(value), 40)}, wanted a value of 16 bits")
    return value


def read_meta(key: str, data: bytes) -> dict[str, Any]:
    """What meta.json of a sample says.

    Raises:
        ShardError: it is of another format version.
        ValueError, KeyError, TypeError: it is malformed.
    """
    meta: dict[str, Any] = parse_json(data, max_bytes=_MAX_META_BYTES)
    if meta["format_version"] not in READ_VERSIONS:
        raise ShardError(
            f"sample {key}: meta.json has format version {shown(repr(meta['format_version']), 40)}, this program reads "
            f"{' and '.join(map(str, READ_VERSIONS))}; use the program version that packed it, or pack again"
        )
    return meta


def check_frame(frame: Frame, where: str) -> NDArray[np.uint16]:
    """Decode every image of a frame and hold it against its numbers.

    Args:
        frame: to check.
        where: names the frame in messages: a key, a file.

    Returns:
        Its depth, as `decode_frame_depth` gives it.

    Raises:
        ShardError: an image does not decode, a size does not fit its K or the depth grid, a transform is not rigid.
    """
    check_numbers(frame, where)
    try:
        decode_color(frame.color, frame.color_format, size_of_camera("color", frame.K_color, where))
        depth = decode_frame_depth(frame, where)
        height, width = depth.shape
        for name, data in (("semantic", frame.semantic), ("instance", frame.instance)):
            if data is not None:
                decode_labels(data, size_of_labels(name, (width, height), where))
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
    return depth


def decode_frame_depth(frame: Frame, where: str, *, check_chunks: bool = True) -> NDArray[np.uint16]:
    """(H, W) depth in units of the frame's depth_scale, 0 where there is no reading.

    Raises:
        BrokenImageError: it does not decode.
        ShardError: its size does not fit K_depth; `where` names the frame.
    """
    fits = size_of_camera("depth", frame.K_depth, where)
    size, no_reading = frame.depth_size, frame.no_reading
    return decode_depth(frame.depth, fits, size=size, no_reading=no_reading, check_chunks=check_chunks)


def check_numbers(frame: Frame, where: str) -> None:
    """Raise ShardError unless the numbers of a frame can be computed with; its images are not looked at."""
    low, high = DEPTH_SCALES
    if not low <= frame.depth_scale <= high:
        raise ShardError(
            f"{where}: depth_scale is {frame.depth_scale}, wanted units per metre, from {low:g} to {high:g} (1000 for "
            "millimetres)"
        )
    check_rigid("color_from_depth", frame.color_from_depth, where)
    if frame.world_from_camera is not None:
        check_rigid("world_from_camera", frame.world_from_camera, where)
    for box in frame.boxes or ():
        check_rigid("camera_from_box", box.camera_from_box, where)


def size_of_camera(name: str, K: Matrix, where: str) -> Fits:
    """What raises ShardError unless the size of an image fits its intrinsics: looked at before it is decoded."""
    return lambda size: _check_intrinsics(name, K, size, where)


def size_of_labels(name: str, depth_size: tuple[int, int], where: str) -> Fits:
    """What raises ShardError unless a label image is on the depth grid, (width, height)."""

    def fits(size: tuple[int, int]) -> None:
        if size != depth_size:
            raise ShardError(
                f"{where}: the {name} image is {_size(size)}, the depth image {_size(depth_size)}; labels live on the "
                "depth grid: pack with --labels-from color where they are on that of the colour image, or resize them "
                "(nearest neighbour)"
            )

    return fits


def check_rigid(name: str, matrix: Matrix, where: str) -> None:
    """Raise ShardError unless (4, 4) `matrix` is a rotation and a translation."""
    # In Python's numbers: numpy takes ten times as long for so few, and packing asks this of every frame.
    *rows, last = matrix.tolist()
    if not all(isfinite(number) for row in (*rows, last) for number in row):
        raise ShardError(f"{where}: {name} is not finite")
    a, b, c = columns = [[row[i] for row in rows] for i in range(3)]
    error = max(abs(_dot(u, v) - (u is v)) for u in columns for v in columns)
    determinant = _dot(a, [b[1] * c[2] - b[2] * c[1], b[2] * c[0] - b[0] * c[2], b[0] * c[1] - b[1] * c[0]])
    in_place = all(abs(found - wanted) <= _LAST_ROW_TOLERANCE for found, wanted in zip(last, (0, 0, 0, 1), strict=True))
    if not (error <= RIGID_TOLERANCE and determinant > 0 and in_place):
        raise ShardError(
            f"{where}: {name} is not a rigid transform (R^T R is off the identity by {error:.3g}, determinant "
            f"{determinant:.3g}, last row {last}); wanted rotation and translation in metres"
        )


def _dot(u: list[float], v: list[float]) -> float:
    return u[0] * v[0] + u[1] * v[1] + u[2] * v[2]


def _check_intrinsics(name: str, K: Matrix, size: tuple[int, ...], where: str) -> None:
    (fx, skew, cx), (zero, fy, cy), last = K.tolist()
    if not (all(map(isfinite, (fx, skew, cx, fy, cy))) and zero == 0 and last == [0, 0, 1] and min(fx, fy) > 0):
        raise ShardError(f"{where}: K_{name} is {K.tolist()}, wanted [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels")
    low, high = PRINCIPAL_POINT_SHARE
    if not all(low * length <= middle <= high * length for middle, length in zip((cx, cy), size, strict=True)):
        guess = (round(2 * cx), round(2 * cy))
        raise ShardError(
            f"{where}: {name} is {_size(size)} but K_{name} has its principal point at ({cx:g}, {cy:g}), so it is for "
            f"about {_size(guess)}; give the intrinsics of this image size and pack again"
        )


def _size(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"


def matrix_from_json(value: Any, size: int) -> Matrix:
    """(size, size) from nested lists; ValueError for another shape."""
    matrix = np.array(value)
    if matrix.shape != (size, size) or matrix.dtype.kind not in "fiu":
        raise ValueError(f"wanted a {size}x{size} matrix of numbers, found {matrix.dtype} of shape {matrix.shape}")
    return matrix.astype(np.float64)


def boxes_from_json(data: bytes) -> tuple[Box, ...]:
    """Boxes as boxes.json of a frame spells them; ValueError, KeyError or TypeError for anything else."""
    boxes = []
    for entry in parse_json(data):
        x, y, z = lengths_from_json(entry["size"])
        boxes.append(Box(str(entry["label"]), matrix_from_json(entry["camera_from_box"], 4), (x, y, z)))
    return tuple(boxes)


def lengths_from_json(value: Any) -> tuple[float, float, float]:
    """Three lengths, metres; ValueError for anything else."""
    x, y, z = (float(length) for length in value)
    if not all(0 < length < np.inf for length in (x, y, z)):
        raise ValueError(f"wanted three lengths above 0, found {x:g}, {y:g}, {z:g}")
    return x, y, z


def json_bytes(value: Any) -> bytes:
    """The one way in which values become bytes of a sample; ValueError for what is not finite."""
    # Sorted keys and shortest round-trip floats: the same sample gives the same bytes. NaN is not JSON.
    return json.dumps(value, sort_keys=True, allow_nan=False).encode("ascii")
