"""Your own frames: color/, depth/, and where there are any pose/, label/, instance/, with one file of intrinsics.

Files belong together by their name without suffix. Poses are 4x4 camera to world, OpenCV axes, metres. Each scene is
such a folder; the folder given is a scene or holds scenes.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.images import BrokenImageError, decode_any_depth
from shards.schema import Frame
from shards.sources.raw_files import (
    COLOR_SUFFIXES,
    SourceOptions,
    color_format,
    natural_order,
    read_bytes,
    read_depth,
    read_intrinsics,
    read_matrix,
    read_text,
    read_world_from_camera,
    require_folder,
    require_no_link,
)

NAME = "folder"
_DEPTH_SUFFIXES = (".png", ".pgm", ".tif", ".tiff")
# One K for both images, or one each. The first name found counts; the later ones are those of ScanNet's exports.
_SHARED_INTRINSICS = ("intrinsic.txt", "intrinsics.txt", "camera-intrinsics.txt")
_COLOR_INTRINSICS = ("intrinsic_color.txt", "intrinsics_color.txt", "intrinsic/intrinsic_color.txt")
_DEPTH_INTRINSICS = ("intrinsic_depth.txt", "intrinsics_depth.txt", "intrinsic/intrinsic_depth.txt")
# ScanNet's exports have these beside the intrinsics, the identity in most scenes.
_EXTRINSICS = tuple(f"{folder}extrinsic_{name}.txt" for folder in ("", "intrinsic/") for name in ("color", "depth"))
_SATURATED = 65535
_LABEL_NAMES_FILE = "label_names.txt"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FolderRef:
    """One frame on disk."""

    scene_id: str
    frame_id: str
    color: Path
    depth: Path
    world_from_camera_file: Path | None
    semantic: Path | None
    instance: Path | None
    color_intrinsics: Path
    depth_intrinsics: Path
    depth_scale: float

    @property
    def origin(self) -> str:
        """Where the frame lies, for messages."""
        return f"{self.color}, {self.depth}"


def scan(root: Path, options: SourceOptions) -> tuple[FolderRef, ...]:
    """Every frame of the scene, or of the scenes, in `root`, in natural order of names.

    Raises:
        CallError: no such folder, no scene in it, or no depth scale given.
        ShardError: colour without depth or the reverse, no intrinsics, or two cameras that do not coincide.
    """
    require_folder(root)
    if options.depth_scale is None:
        raise CallError(
            f"{root}: the folder format needs the depth units per metre: --depth-scale 1000 for millimetres, 5000 for "
            "TUM-like depth"
        )
    scenes = (
        [root] if _is_scene(root) else sorted(filter(_is_scene, root.iterdir()), key=lambda p: natural_order(p.name))
    )
    for scene in scenes:
        if scene != root:
            require_no_link(scene)
    refs = [ref for scene in scenes for ref in _scan_scene(scene, options.depth_scale)]
    if not refs:
        raise CallError(f"{root}: no frame found; wanted color/ and depth/ in it, or scene folders that have them")
    return tuple(refs)


def read(ref: FolderRef) -> Frame:
    """Load one frame; raises ShardError naming the file that is wrong."""
    return Frame(
        dataset=NAME,
        scene_id=ref.scene_id,
        frame_id=ref.frame_id,
        color=read_bytes(ref.color),
        color_format=color_format(ref.color),
        depth=read_depth(ref.depth),
        depth_scale=ref.depth_scale,
        K_depth=read_intrinsics(ref.depth_intrinsics),
        K_color=read_intrinsics(ref.color_intrinsics),
        color_from_depth=np.eye(4),
        world_from_camera=None
        if ref.world_from_camera_file is None
        else read_world_from_camera(ref.world_from_camera_file),
        semantic=None if ref.semantic is None else read_bytes(ref.semantic),
        instance=None if ref.instance is None else read_bytes(ref.instance),
    )


def label_names(root: Path) -> tuple[str, ...]:
    """Class names by id, from the lines of label_names.txt in `root`; empty without that file."""
    path = root / _LABEL_NAMES_FILE
    return tuple(line.strip() for line in read_text(path).splitlines()) if path.is_file() else ()


def _is_scene(folder: Path) -> bool:
    found = [name for name in ("color", "depth") if (folder / name).is_dir()]
    for name in (*found, *(("pose", "label", "instance") if found else ())):
        require_no_link(folder / name)
    if len(found) == 1:
        raise ShardError(
            f"{folder}: has a folder {found[0]}/ and no {'depth' if found == ['color'] else 'color'}/; a scene needs "
            "both: restore the other, or remove this one"
        )
    return bool(found)


def _scan_scene(scene: Path, depth_scale: float) -> list[FolderRef]:
    colors = _files_by_stem(scene / "color", COLOR_SUFFIXES)
    depths = _files_by_stem(scene / "depth", _DEPTH_SUFFIXES)
    for have, lack, name in ((colors, depths, "depth"), (depths, colors, "color")):
        if missing := sorted(set(have) - set(lack), key=natural_order):
            raise ShardError(
                f"{have[missing[0]]}: no file {missing[0]}.* in {scene / name} ({len(missing)} frames lack theirs); "
                "restore it or remove the frame"
            )
    poses = _optional_files(scene / "pose", (".txt",), colors)
    semantics = _optional_files(scene / "label", (".png",), colors)
    instances = _optional_files(scene / "instance", (".png",), colors)
    scene_id = scene.resolve().name
    _require_one_camera(scene)
    stems = sorted(colors, key=natural_order)
    if stems:
        _warn_of_saturation(depths[stems[0]])
    color_intrinsics = _intrinsics_file(scene, _COLOR_INTRINSICS + _SHARED_INTRINSICS)
    depth_intrinsics = _intrinsics_file(scene, _DEPTH_INTRINSICS + _SHARED_INTRINSICS)
    return [
        FolderRef(
            scene_id=scene_id,
            frame_id=stem,
            color=colors[stem],
            depth=depths[stem],
            world_from_camera_file=poses.get(stem),
            semantic=semantics.get(stem),
            instance=instances.get(stem),
            color_intrinsics=color_intrinsics,
            depth_intrinsics=depth_intrinsics,
            depth_scale=depth_scale,
        )
        for stem in stems
    ]


def _optional_files(folder: Path, suffixes: tuple[str, ...], colors: dict[str, Path]) -> dict[str, Path]:
    """Files that only some frames need to have; a folder that fits no frame at all is a mistake in its names."""
    if not folder.is_dir():
        return {}
    files = _files_by_stem(folder, suffixes)
    missing = sorted(set(colors) - set(files), key=natural_order)
    if missing and len(missing) == len(colors):
        raise ShardError(
            f"{folder}: none of its {len(files)} files is named like a frame; wanted {missing[0]}{suffixes[0]}, ..."
        )
    if missing:
        _logger.warning(
            "%s: %d of %d frames have no file here, the first is %s",
            shown(folder),
            len(missing),
            len(colors),
            shown(missing[0]),
        )
    return files


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes:
            continue
        require_no_link(path)
        if path.stem in files:
            raise ShardError(f"{path}: {files[path.stem].name} is of the same frame; keep one of the two")
        files[path.stem] = path
    return files


def _require_one_camera(scene: Path) -> None:
    for path in (scene / name for name in _EXTRINSICS):
        if path.is_file() and not np.array_equal(read_matrix(path), np.eye(4)):
            raise ShardError(
                f"{path}: not the 4x4 identity, and this format takes both images as of one camera; register "
                "the depth images to the colour camera, or remove the file to neglect it"
            )


def _warn_of_saturation(path: Path) -> None:
    """Look at one image of a scene: what it uses for "no reading", the others use."""
    try:
        depth = decode_any_depth(read_bytes(path))
    except BrokenImageError:
        return  # packing says so, with the name of the frame
    if count := np.count_nonzero(depth == _SATURATED):
        _logger.warning(
            "%s: %d pixels are %d, often a mark for no reading, and are packed as a distance; set them to 0",
            shown(path),
            count,
            _SATURATED,
        )


def _intrinsics_file(scene: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (scene / name).is_file():
            return scene / name
    raise ShardError(f"{scene}: no intrinsics; wanted a 3x3 or 4x4 matrix in pixels in one of {', '.join(names)}")
