"""The second kind of sample: a whole scene as a labelled point cloud, its members in a tar, and its checks."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.doors.json_text import parse_json
from shards.doors.npz import read_npz
from shards.doors.text import shown
from shards.errors import ShardError
from shards.schema import (
    FORMAT_VERSION,
    Matrix,
    check_rigid,
    json_bytes,
    lengths_from_json,
    matrix_from_json,
    read_meta,
    sample_key,
)

# A sample's key is SCENE/FRAME; a sample that is a whole scene stands under this frame.
WHOLE = "whole"
SCENE_MEMBERS = ("points.npz", "meta.json", "boxes.json")
_LABEL_TYPES = (np.dtype(np.uint8), np.dtype(np.uint16))
_SEGMENT_TYPES = (np.dtype(np.uint32),)
_TYPES = (np.dtype(np.float32), *_LABEL_TYPES, *_SEGMENT_TYPES)
_ZIP_LEVEL = 4  # coordinates hardly shrink; labels do at any level
_ARRAYS = ("xyz", "rgb", "semantic", "instance", "segments", "normals")


@dataclass(frozen=True, eq=False)
class SceneBox:
    """An oriented box around an object of a scene.

    Attributes:
        label: class name.
        world_from_box: (4, 4) rigid, metres; the box is centred on its own origin.
        size: full extents along the box's own x, y, z, metres.
    """

    label: str
    world_from_box: Matrix
    size: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Scene:
    """A whole scene as every source yields and every dataset holds it.

    Attributes:
        dataset: name of the raw format it came from.
        scene_id: original name, any text.
        points: (N, 3) float32, metres, world, z up.
        rgb: (N, 3) uint8.
        semantic: (N,) uint8 or uint16 class ids; None without labels.
        instance: (N,) uint16 instance ids, 0 for none; None without labels.
        boxes: objects of the scene; None without annotation (an empty tuple means annotated and empty).
        segments: (N,) uint32, the dataset's own over-segmentation; None without one.
        normals: (N, 3) float32, world, unit length or 0 where unknown; None without them.
    """

    dataset: str
    scene_id: str
    points: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    semantic: NDArray[np.uint8] | NDArray[np.uint16] | None = None
    instance: NDArray[np.uint16] | None = None
    boxes: tuple[SceneBox, ...] | None = None
    segments: NDArray[np.uint32] | None = None
    normals: NDArray[np.float32] | None = None


def members_of_scene(scene: Scene) -> dict[str, bytes]:
    """The files that hold one scene in a tar, by the name after the key."""
    arrays: dict[str, NDArray[Any]] = {"xyz": scene.points, "rgb": scene.rgb}
    for name in _ARRAYS[2:]:
        if (array := getattr(scene, name)) is not None:
            arrays[name] = array
    meta = {"format_version": FORMAT_VERSION, "dataset": scene.dataset, "scene_id": scene.scene_id}
    members = {
        "points.npz": _npz_bytes(arrays),
        "meta.json": json_bytes(meta),
    }
    if scene.boxes is not None:
        members["boxes.json"] = json_bytes(
            [
                {"label": box.label, "world_from_box": box.world_from_box.tolist(), "size": list(box.size)}
                for box in scene.boxes
            ]
        )
    return members


def scene_from_members(key: str, members: Mapping[str, bytes]) -> Scene:
    """Read a scene back from its files; `check_scene` looks at the values in its arrays.

    Raises:
        ShardError: a member is missing, unknown or malformed, arrays do not fit each other, or the id in meta.json does
            not spell this key.
    """
    if unknown := sorted(set(members) - set(SCENE_MEMBERS)):
        raise ShardError(f"sample {key}: unknown member {shown(unknown[0])}; a scene has {SCENE_MEMBERS}")
    if missing := [name for name in ("points.npz", "meta.json") if name not in members]:
        raise ShardError(f"sample {key}: member {missing[0]} is missing, found {sorted(members)}; pack it again")
    try:
        arrays = read_npz(members["points.npz"], _ARRAYS, _TYPES)
        if not {"xyz", "rgb"} <= set(arrays):
            raise ValueError(f"points.npz holds {sorted(arrays)}, wanted xyz, rgb and, with labels, semantic, instance")
        meta = read_meta(key, members["meta.json"])
        scene = Scene(
            dataset=str(meta["dataset"]),
            scene_id=str(meta["scene_id"]),
            points=arrays["xyz"],
            rgb=arrays["rgb"],
            semantic=arrays.get("semantic"),
            instance=arrays.get("instance"),
            boxes=_boxes(members["boxes.json"]) if "boxes.json" in members else None,
            segments=arrays.get("segments"),
            normals=arrays.get("normals"),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(
            f"sample {key}: a member is malformed ({type(error).__name__}: {shown(error)}); pack it again"
        ) from error
    if sample_key(scene.scene_id, WHOLE) != key:
        raise ShardError(f"sample {key}: meta.json is of scene '{shown(scene.scene_id)}'")
    _check_arrays(scene, f"sample {key}")
    return scene


def check_scene(scene: Scene, where: str) -> None:
    """Hold the arrays of a scene against each other and against what they must be.

    Args:
        scene: to check.
        where: names the scene in messages: a key, a file.

    Raises:
        ShardError: no points, shapes or types that do not fit, coordinates that are not finite, a box that is not one.
    """
    _check_arrays(scene, where)
    if not np.isfinite(scene.points).all():
        raise ShardError(f"{where}: {int((~np.isfinite(scene.points)).any(axis=1).sum())} points are not finite")
    if scene.normals is not None and not np.isfinite(scene.normals).all():
        raise ShardError(f"{where}: normals are not finite; wanted unit vectors, 0 where there is none")
    for box in scene.boxes or ():
        check_rigid("world_from_box", box.world_from_box, where)
        if not (np.isfinite(box.size).all() and min(box.size) > 0):
            raise ShardError(f"{where}: the box of a {box.label} has size {box.size}, wanted metres above 0")


def _check_arrays(scene: Scene, where: str) -> None:
    """Raise ShardError unless there are points, and every array has a row for each."""
    num_points = scene.points.size // 3
    if num_points == 0:
        raise ShardError(f"{where}: the scene has no points; remove it, and pack again")
    _check_array("xyz", scene.points, (num_points, 3), (np.dtype(np.float32),), where)
    _check_array("rgb", scene.rgb, (num_points, 3), (np.dtype(np.uint8),), where)
    if scene.semantic is not None:
        _check_array("semantic", scene.semantic, (num_points,), _LABEL_TYPES, where)
    if scene.instance is not None:
        _check_array("instance", scene.instance, (num_points,), _LABEL_TYPES[1:], where)
    if scene.segments is not None:
        _check_array("segments", scene.segments, (num_points,), _SEGMENT_TYPES, where)
    if scene.normals is not None:
        _check_array("normals", scene.normals, (num_points, 3), (np.dtype(np.float32),), where)


def _check_array(
    name: str, array: NDArray[Any], shape: tuple[int, ...], dtypes: tuple[np.dtype[Any], ...], where: str
) -> None:
    if array.shape != shape or array.dtype not in dtypes:
        raise ShardError(
            f"{where}: {name} is {array.dtype} {array.shape}, wanted {' or '.join(map(str, dtypes))} {shape}; one row "
            "for every point"
        )


def _npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What np.load reads; equal arrays give equal bytes, dated 1980."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.create_system = 3  # else it names the system that packs
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, _ZIP_LEVEL)
    return buffer.getvalue()


def _boxes(data: bytes) -> tuple[SceneBox, ...]:
    boxes = []
    for entry in parse_json(data):
        x, y, z = lengths_from_json(entry["size"])
        boxes.append(SceneBox(str(entry["label"]), matrix_from_json(entry["world_from_box"], 4), (x, y, z)))
    return tuple(boxes)
