"""7-Scenes: frame-N.color.png (or .jpg), frame-N.depth.png, frame-N.pose.txt in folders named seq-XX.

Depth is in millimetres and 65535 means no reading. Poses are camera to world, OpenCV axes. Colour and depth come from
two lenses and were not registered by the authors; like everybody, we take them as one view.
"""

from pathlib import Path

from shards.errors import CallError
from shards.sources.cameras import Camera, pinhole, read_camera, read_poses
from shards.sources.complete import complete_stems, present_files
from shards.sources.frame_files import DepthFiles, FrameFiles
from shards.sources.options import SourceOptions
from shards.sources.raw_files import COLOR_SUFFIXES, files_by_stem, name_of, require_folder, walk_folders

NAME = "seven-scenes"
_DEPTH_SCALE = 1000.0
_NO_READING = 65535
_COLOR_SUFFIXES = tuple(f".color{suffix}" for suffix in COLOR_SUFFIXES)
_DEPTH_SUFFIX = ".depth.png"
_INTRINSICS = (585.0, 585.0, 320.0, 240.0)  # published for the Kinect of 7-Scenes
_INTRINSICS_FILE = "camera-intrinsics.txt"


def scan(root: Path, options: SourceOptions) -> tuple[FrameFiles, ...]:
    """Every frame below `root` (a sequence, a scene, or all scenes), in order.

    Raises:
        CallError: no such folder, or no frame in it.
        ShardError: a frame without its colour image, or a colour image without depth.
    """
    require_folder(root)
    chosen = options.chosen_scenes()
    frames = [
        frame
        for folder, names in walk_folders(root)
        if _scene_id(folder) in chosen
        for frame in _scan_folder(folder, names, root, options)
    ]
    if not frames:
        raise CallError(
            f"{root}: no *{_DEPTH_SUFFIX} in it or below; wanted 7-Scenes frames such as seq-01/frame-000000.depth.png "
            "(unzip the sequences first)"
        )
    return tuple(frames)


def _scan_folder(folder: Path, names: list[str], root: Path, options: SourceOptions) -> list[FrameFiles]:
    colors = files_by_stem(folder, _COLOR_SUFFIXES, names)
    depths = files_by_stem(folder, (_DEPTH_SUFFIX,), names)
    if not colors.files and not depths.files:
        return []
    stems = complete_stems(colors, depths, options.only_complete)
    poses = read_poses(present_files(files_by_stem(folder, (".pose.txt",), names), stems, "pose file"), folder)
    camera, scene_id = _camera(folder, root, options), _scene_id(folder)
    return [
        FrameFiles(
            dataset=NAME,
            scene_id=scene_id,
            frame_id=stem,
            color=colors.files[stem],
            depth=DepthFiles(depths.files[stem], options.depth_scale or _DEPTH_SCALE, no_reading=_NO_READING),
            color_camera=camera,
            depth_camera=camera,
            world_from_camera=poses.get(stem),
        )
        for stem in stems
    ]


def _scene_id(folder: Path) -> str:
    # Every scene has a seq-01: the scene's own name makes keys unique across scenes and datasets.
    name = name_of(folder)
    return f"{name_of(folder.parent)}/{name}" if name.startswith("seq-") else name


def _camera(folder: Path, root: Path, options: SourceOptions) -> Camera:
    """The intrinsics of the folder or of the nearest folder above it, not above `root`; else the published ones."""
    if options.intrinsics is not None:
        return read_camera(options.intrinsics)
    while True:
        if (folder / _INTRINSICS_FILE).is_file():
            return read_camera(folder / _INTRINSICS_FILE)
        if folder == root:
            return pinhole(*_INTRINSICS)
        folder = folder.parent
