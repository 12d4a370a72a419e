"""Any scan as points in metres with z up: a PLY, an npz, a stored sample, or frames that are fused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.doors.files import read_file
from shards.doors.npz import NpzError, read_npz
from shards.doors.ply import PlyError, read_ply
from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.manifest import MANIFEST_NAME
from shards.reader import DatasetReader
from shards.scene import Scene
from shards.schema import Frame, escape_id
from shards.sources.options import SourceOptions
from shards.sources.recognise import detect_frames
from t4p.data.decode import decode_frame
from t4p.data.fusing import CELL_SIZE, Fusion
from t4p.data.transforms import lift_frame
from t4p.data.upright import METRES, Unit, UpAxis, guess_unit, guess_up, lie_near, turn_up

MAX_DEPTH = 5.0  # metres; what a depth camera says beyond is noise of centimetres
MOST_FRAMES = 400  # of a sequence, spread over it
_COLUMNS = 320  # that a depth image is thinned to
_MILLIMETRES = 1000.0  # units of depth per metre
_FAR = 10_000.0  # metres from the origin, beyond which a millimetre is lost in float32
_STRAY = 10_000.0  # metres from the median, beyond which a grid of 2^20 voxels of 2 cm along each axis ends
_KINDS = "a .ply, a .npz, a packed dataset (DST, DST#SCENE or DST#SCENE/FRAME), or a folder of raw frames"
_AXES = {f"{sign}{axis}": f"{sign.strip('+')}{axis}" for sign in "+-" for axis in "xyz"}
_NPZ_POINTS, _NPZ_COLORS = ("points", "xyz"), ("colors", "rgb")
_NPZ_TYPES = tuple(np.dtype(kind) for kind in ("f2", "f4", "f8", "i2", "i4", "i8", "u1", "u2"))
_NPZ_BYTES = 4 << 30
_NPZ_OTHERS = 64
Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Scan:
    """Points as a network takes them, and what was assumed on the way.

    Attributes:
        name: fit to be the name of a folder.
        points: (N, 3) float32 metres, z up, N at least 1.
        colors: (N, 3) uint8, None where there are none.
        rows: (N,) int64 row of the file that each point was; of what was fused, 0 to N - 1.
        offset: (3,) metres, what was taken off the points (after the turn) because they lay far from the origin.
        remarks: what was assumed, left out or converted, a sentence each.
    """

    name: str
    points: NDArray[np.float32]
    colors: NDArray[np.uint8] | None
    rows: NDArray[np.int64]
    offset: NDArray[np.float64]
    remarks: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Found:
    """Points as they were found.

    Attributes:
        points: (N, 3), in a unit and with axes of which None says that nobody knows them.
    """

    name: str
    points: NDArray[np.floating]
    colors: NDArray[np.uint8] | None
    unit: Unit | None = None
    up: UpAxis | None = None
    remarks: tuple[str, ...] = ()


def read_scan(scan: str, unit: Unit | None = None, up: UpAxis | None = None) -> Scan:
    """Read a scan.

    Args:
        scan: path of a .ply or .npz (`points` or `xyz`, and `colors` or `rgb`); a packed dataset, all of it where it
            holds one scene, else DST#SCENE or DST#SCENE/FRAME (for a folder DST/SCENE/FRAME as well); or a folder of
            raw frames in a layout of `t4p shards formats`. Frames of one scene are fused by their poses.
        unit: of the coordinates; None takes what the source says, else guesses.
        up: axis of the source that points up; likewise.

    Raises:
        CallError: there is nothing of that name, or nothing that can be read as a scan.
        ShardError: it is damaged, holds no point, or most lie far apart.
    """
    found = _find(scan)
    points, remarks = found.points, list(found.remarks)
    is_finite = np.isfinite(points).all(axis=1)
    rows = np.flatnonzero(is_finite)
    if len(rows) < len(points):
        remarks.append(
            f"{len(points) - len(rows):,} of {len(points):,} points are not finite (NaN) and are left out, the first "
            f"of them row {is_finite.argmin()}"
        )
        points = points[rows]
    if not len(rows):
        raise ShardError(
            f"{shown(scan)}: holds no point{' that is finite' if len(is_finite) else ''}; give a scan that has some"
        )
    if (known := unit or found.unit) is None:
        known, remark = guess_unit(points[lie_near(points, _STRAY)])
        remarks += [remark] if remark else []
    points = np.asarray(points, np.float64) * METRES[known]
    near = lie_near(points, _STRAY)
    if (num_strays := np.count_nonzero(~near)) > len(points) / 2:
        raise ShardError(
            f"{shown(scan)}: {num_strays:,} of {len(points):,} points lie more than {_STRAY:,.0f} m from their median, "
            f"taken as {known}; say --unit if they are in another, or give a part of them"
        )
    if num_strays:
        remarks.append(
            f"{num_strays:,} of {len(points):,} points lie more than {_STRAY:,.0f} m from their median, taken as "
            f"{known}, and are left out, the first of them row {rows[~near][0]}"
        )
        points, rows = points[near], rows[near]
    colors = None if found.colors is None else found.colors[rows]
    if (axis := up or found.up) is None:
        axis = guess_up(points)
        why = "nobody says so" if axis == "z" else f"the floor lies flat along {axis[-1]}"
        remarks.append(f"up is taken to be {axis}: {why}; --up says otherwise")
    points, offset = _near_origin(turn_up(points, axis))
    if offset.any():
        moved = ", ".join(f"{value:.0f}" for value in offset)
        remarks.append(f"the points lie far from the origin: ({moved}) m are taken off them")
    size = " x ".join(f"{extent:.1f}" for extent in np.ptp(points, axis=0))
    of_color = "without colour" if colors is None else "with colour"
    summary = f"{len(points):,} points over {size} m, {of_color}; {known}, {axis} up"
    return Scan(found.name, points.astype(np.float32), colors, rows, offset, (summary, *remarks))


def _near_origin(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if float(np.abs(points).max()) < _FAR:
        return points, np.zeros(3)
    offset = np.rint(np.median(points, axis=0))
    offset[np.abs(offset) < _FAR] = 0.0  # a height above the floor stays what it is
    return points - offset, offset


def place_of_scan(scan: str) -> tuple[str, str]:
    """The file, folder or dataset that a scan is in, and the key in it, which is empty where it is all of it.

    Raises:
        CallError: there is nothing of that name.
    """
    path = Path(scan)
    if "://" not in scan and path.is_file():
        return scan, ""
    place, _, key = (scan, "", "") if path.exists() else scan.rpartition("#") if "#" in scan else _split_folder(path)
    if not place or ("://" not in place and not Path(place).is_dir()):
        raise CallError(f"{shown(scan)}: no such file or folder; wanted {_KINDS}")
    return place, key


def _find(scan: str) -> _Found:
    place, key = place_of_scan(scan)
    if "://" not in place and Path(place).is_file():
        return _read_points_file(Path(place))
    if "://" in place or (Path(place) / MANIFEST_NAME).exists():
        return _read_dataset(place, key)
    return _read_folder(Path(place), key)


def _split_folder(path: Path) -> tuple[str, str, str]:
    """DST/SCENE/FRAME or DST/SCENE, where DST is a packed dataset, as DST, "#" and the rest."""
    for folder in list(path.parents)[:2]:
        if (folder / MANIFEST_NAME).exists():
            return str(folder), "#", path.relative_to(folder).as_posix()
    return "", "", ""


def _read_points_file(path: Path) -> _Found:
    suffix = path.suffix.lower()
    try:
        if suffix == ".ply":
            ply = read_ply(path)
            return _Found(_as_name(path.stem), ply.points, ply.colors)
        if suffix == ".npz":
            arrays = read_npz(
                read_file(path, _NPZ_BYTES), _NPZ_POINTS + _NPZ_COLORS, _NPZ_TYPES, _NPZ_BYTES, max_others=_NPZ_OTHERS
            )
            return _of_arrays(_as_name(path.stem), arrays)
    except (PlyError, NpzError) as error:
        raise ShardError(f"{shown(path)}: {error}; write the scan again") from error
    except OSError as error:
        raise CallError(f"{shown(path)}: cannot be read ({error})") from error
    raise CallError(f"{shown(path)}: a file {suffix or 'without a suffix'}, wanted {_KINDS}")


def _of_arrays(name: str, arrays: dict[str, NDArray[Any]]) -> _Found:
    points, colors = (next((arrays[key] for key in keys if key in arrays), None) for keys in (_NPZ_POINTS, _NPZ_COLORS))
    if points is None or points.ndim != 2 or points.shape[1] != 3:
        found = "nothing of these names" if points is None else f"{points.dtype} of shape {points.shape}"
        raise NpzError(f"its points are {found}, wanted numbers (N, 3) named {' or '.join(_NPZ_POINTS)}")
    if colors is not None:
        if colors.shape != points.shape:
            raise NpzError(f"its colours have shape {colors.shape}, wanted {points.shape}, a row for every point")
        if colors.dtype != np.uint8:
            low, high = (float(colors.min()), float(colors.max())) if len(colors) else (0.0, 0.0)
            if colors.dtype.kind != "f" or not 0 <= low <= high <= 1:
                raise NpzError(
                    f"its colours are {colors.dtype} from {low:g} to {high:g}, wanted uint8, or floats in [0, 1]"
                )
            colors = np.rint(np.asarray(colors, np.float32) * 255)
        colors = colors.astype(np.uint8)
    return _Found(name, points.astype(np.float64), colors)


def _read_dataset(url: str, key: str) -> _Found:
    dataset = DatasetReader(url)
    if key.count("/"):
        places = [dataset.find(key)]
    else:
        by_scene = _keys_by_scene(dataset)
        scene = key and next((each for each in (key, escape_id(key)) if each in by_scene), key)
        places = by_scene[_chosen_scene(url, list(by_scene), scene)]
    up = _as_up(dataset.manifest.up_axis)
    name = _as_name(key.replace("/", "-") or Path(url.rstrip("/")).name)
    first = dataset.read_sample(*places[0])
    if isinstance(first, Scene):
        return _Found(name, first.points, first.rgb, "m", up or "z")
    chosen = _spread(places)
    frames = (dataset.read_frame(*place) for place in chosen)
    return _fuse(name, url, frames, len(chosen), len(places), up)


def _keys_by_scene(dataset: DatasetReader) -> dict[str, list[tuple[int, int]]]:
    """Places (shard, sample) by the scene part of the keys."""
    found: dict[str, list[tuple[int, int]]] = {}
    for shard in range(dataset.manifest.num_shards):
        for sample, key in enumerate(dataset.keys(shard)):
            found.setdefault(key.partition("/")[0], []).append((shard, sample))
    return found


def _chosen_scene(place: str, scenes: Sequence[str], wanted: str) -> str:
    """The scene that is wanted, or the only one.

    Raises:
        CallError: it is not there, or there are several and none is named.
    """
    some = ", ".join(f"'{shown(f'{place}#{scene}')}'" for scene in scenes[:3]) + (", ..." if len(scenes) > 3 else "")
    if wanted in scenes:
        return wanted
    if wanted:
        raise CallError(f"{shown(place)}: no scene {shown(wanted)!r} among {len(scenes)}; give one of {some}")
    if len(scenes) != 1:
        raise CallError(f"{shown(place)}: holds {len(scenes)} scenes, wanted one; give one of {some}")
    return scenes[0]


def _read_folder(folder: Path, scene: str) -> _Found:
    found, remarks = detect_frames(folder, SourceOptions()), tuple[str, ...]()
    if found is None:  # a layout that does not say in what its depth is
        found = detect_frames(folder, SourceOptions(depth_scale=_MILLIMETRES))
        remarks = ("its depth images are taken to be in millimetres",)
    if found is None:
        raise CallError(
            f"{shown(folder)}: neither a packed dataset (no {MANIFEST_NAME}) nor frames in a layout that `t4p shards "
            f"formats` lists; wanted {_KINDS}"
        )
    source, all_refs = found
    scenes = list(dict.fromkeys(ref.scene_id for ref in all_refs))
    chosen = _chosen_scene(str(folder), scenes, scene)
    refs = [ref for ref in all_refs if ref.scene_id == chosen]
    some = _spread(refs)
    frames = (source.read(ref) for ref in some)
    name = _as_name(scene or folder.resolve().name)
    return _fuse(name, str(folder), frames, len(some), len(refs), _as_up(source.up_axis), remarks)


def _fuse(
    name: str,
    place: str,
    frames: Iterator[Frame | Scene],
    num_chosen: int,
    num_frames: int,
    up: UpAxis | None,
    remarks: tuple[str, ...] = (),
) -> _Found:
    """The points of frames of one scene, by their poses; of a frame alone, without one, in upright camera axes."""
    fusion, num_lost = Fusion(), 0
    for frame in frames:
        assert isinstance(frame, Frame)
        if frame.world_from_camera is None and num_chosen > 1:
            num_lost += 1
            continue
        decoded = decode_frame(frame)
        stride = max(1, round(decoded.depth.shape[1] / _COLUMNS))
        lifted = lift_frame(decoded, stride, MAX_DEPTH, in_world=True)
        colors = (lifted.colors.numpy() * 255).round().astype(np.uint8)
        try:
            fusion.add(lifted.points.numpy(), colors)
        except ValueError as error:
            raise ShardError(f"{shown(place)}: a pose is not in metres ({error}); mend the poses") from error
        if frame.world_from_camera is None:
            up = "z"
    if num_lost == num_chosen:
        raise ShardError(
            f"{shown(place)}: none of its {num_chosen} frames has a pose, so they cannot be put together; give one "
            "frame (DST#SCENE/FRAME), or pack them with poses"
        )
    points, colors = fusion.result()
    of_all = "" if num_chosen == num_frames else f" of {num_frames}, spread over the sequence"
    fused = (
        f"{num_chosen - num_lost} frame(s){of_all} fused to one point per {fusion.cell_size / CELL_SIZE:g} cm, up to "
        f"{MAX_DEPTH:g} m from the camera" + (f"; {num_lost} without a pose left out" if num_lost else "")
    )
    return _Found(name, points, colors, "m", up, (fused, *remarks))


def _spread(items: Sequence[Item]) -> list[Item]:
    """At most MOST_FRAMES of them, evenly."""
    places = np.unique(np.linspace(0, len(items) - 1, min(len(items), MOST_FRAMES)).round().astype(int))
    return [items[place] for place in places.tolist()]


def _as_up(axis: str | None) -> UpAxis | None:
    """What a manifest says ("+z"), as it is spelled here ("z")."""
    return _AXES.get(axis or "")  # type: ignore[return-value]


def _as_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._")[:100] or "scan"
