"""The table of raw formats: what `pack` can read, and under which terms the data comes."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from shards.errors import CallError
from shards.manifest import SampleKind
from shards.sample import Sample
from shards.sources import (
    folder,
    polycam,
    scanner_app_3d,
    scannet_sens,
    seven_scenes,
    sunrgbd,
    sunrgbd_votenet,
    synthetic,
    synthetic_scenes,
    transforms_json,
    tum,
)
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions
from shards.terms import NO_TERMS


class FrameRef(Protocol):
    """A frame, or scene, not loaded yet: a dataclass, light and picklable, so that worker processes load it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def scene_id(self) -> str: ...

    @property
    def frame_id(self) -> str: ...

    @property
    def origin(self) -> str: ...


def _no_label_names(root: Path) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class SourceFormat:
    """A kind of raw dataset.

    Attributes:
        name: as typed on the command line.
        summary: one line about the layout.
        licence: one line about what may be done with the data.
        scan: lists the frames of a folder, in packing order.
        takes: fields of the options that it heeds.
        signs: patterns of names in one folder of the layout; those of folders end in "/", bars part alternatives.
        read: loads one of them; called in worker processes.
        tried: what the reader was held against.
        label_names: names of the class ids in the folder, by id.
        sample_kind: what `read` returns, a Frame or a Scene.
        up_axis: of the world of its poses, such as "+z"; None where it differs or nobody says.
    """

    name: str
    summary: str
    licence: str
    scan: Callable[[Path, SourceOptions], Sequence[FrameRef]]
    read: Callable[[Any], Sample]
    label_names: Callable[[Path], tuple[str, ...]] = _no_label_names
    sample_kind: SampleKind = "frames"
    up_axis: str | None = None
    takes: tuple[str, ...] = ()
    signs: tuple[str, ...] = ()
    tried: str = "not said"


_EVERY_FRAMES = ("depth_scale", "intrinsics", "scenes", "split")  # what every reader of frames takes

# Raw data in a folder, in the order in which a folder is tried where nobody says what it holds.
FORMATS = (
    SourceFormat(
        seven_scenes.NAME,
        "7-Scenes and its like: frame-N.color.png|jpg, frame-N.depth.png (mm), frame-N.pose.txt",
        "7-Scenes is for non-commercial research: keep its shards private",
        seven_scenes.scan,
        read_frame,
        takes=(*_EVERY_FRAMES, "only_complete"),
        signs=("*.color.png|*.color.jp*g", "*.depth.png"),
        tried="on real files",
    ),
    SourceFormat(
        tum.NAME,
        "TUM RGB-D: rgb.txt, depth.txt (5000 per metre), groundtruth.txt",
        "TUM RGB-D is CC BY 4.0: shards may be shared with attribution",
        tum.scan,
        read_frame,
        takes=_EVERY_FRAMES,
        signs=("rgb.txt", "depth.txt"),
        tried="on real files",
        up_axis="+z",  # of its motion capture
    ),
    SourceFormat(
        scanner_app_3d.NAME,
        "3D Scanner App, export All Data: frame_N.jpg, depth_N.png, conf_N.png, frame_N.json",
        "your own capture, your terms",
        scanner_app_3d.scan,
        read_frame,
        up_axis="+y",  # of ARKit's world
        takes=(*_EVERY_FRAMES, "only_complete", "min_confidence"),
        signs=("frame_*.json", "frame_*.jp*g", "depth_*.png"),
        tried="on real files",
    ),
    SourceFormat(
        polycam.NAME,
        "Polycam, export of raw data: keyframes/ with corrected_images/ or images/, cameras, depth/, confidence/",
        "your own capture, your terms",
        polycam.scan,
        read_frame,
        up_axis="+y",
        takes=(*_EVERY_FRAMES, "only_complete", "min_confidence"),
        signs=("corrected_images/|images/", "corrected_cameras/|cameras/", "depth/"),
        tried="on real frames of ARKit that the tests lay out",
    ),
    SourceFormat(
        transforms_json.NERFSTUDIO,
        "nerfstudio: transforms.json with depth_file_path (mm, or metres as .npy)",
        "your own capture, your terms",
        transforms_json.scan_nerfstudio,
        read_frame,
        up_axis="+z",
        takes=(*_EVERY_FRAMES, "only_complete", "pose_scale"),
        signs=("transforms.json", "depth*/"),
        tried="on real frames of ARKit that the tests lay out",
    ),
    SourceFormat(
        transforms_json.NERFCAPTURE,
        "NeRFCapture and instant-ngp: transforms.json with depth_path and integer_depth_scale",
        "your own capture, your terms",
        transforms_json.scan_nerfcapture,
        read_frame,
        up_axis="+y",
        takes=(*_EVERY_FRAMES, "only_complete"),
        signs=("transforms.json",),
        tried="on real frames of ARKit that the tests lay out",
    ),
    SourceFormat(
        scannet_sens.NAME,
        "ScanNet's .sens, straight: SRC is one, or a folder with scans/SCENE/SCENE.sens",
        "ScanNet may not be redistributed: keep its shards private",
        scannet_sens.scan,
        read_frame,
        up_axis="+z",
        takes=(*_EVERY_FRAMES, "only_complete"),
        signs=("*.sens",),
        tried="on files of our own writing, and against their export",
    ),
    SourceFormat(
        sunrgbd.NAME,
        "SUN RGB-D as published: a folder a view with image/, depth/, intrinsics.txt, extrinsics/, seg.mat; boxes from "
        "SUNRGBDMeta3DBB_v2.mat",
        "SUN RGB-D is for research use: keep its shards private",
        sunrgbd.scan,
        read_frame,
        sunrgbd.label_names,
        up_axis="+z",
        takes=_EVERY_FRAMES,
        signs=("image/", "depth/|depth_bfx/", "extrinsics/", "intrinsics.txt"),
        tried="on a real view; its annotation on files of our own writing",
    ),
    SourceFormat(
        sunrgbd_votenet.NAME,
        "SUN RGB-D as VoteNet prepares it: image/N.jpg, depth/N.mat (points), calib/N.txt, label/N.txt",
        "SUN RGB-D is for research use: keep its shards private",
        sunrgbd_votenet.scan,
        read_frame,
        up_axis="+z",
        takes=(*_EVERY_FRAMES, "only_complete"),
        signs=("image/", "depth/", "calib/"),
        tried="on two real views",
    ),
    SourceFormat(
        folder.NAME,
        "your own: color/, depth/, intrinsic.txt; optional pose/, label/, instance/; needs --depth-scale",
        "your data, your terms",
        folder.scan,
        read_frame,
        folder.label_names,
        takes=(*_EVERY_FRAMES, "only_complete", "labels_from"),
        signs=("color/", "depth/"),
        tried="on files of our own writing",
    ),
)

# Made from a text that stands where the others have a folder.
GENERATORS = (
    SourceFormat(
        synthetic.NAME,
        "procedural rooms, nothing to download: SRC is seed=1,rooms=20 and any of first, frames, width, height",
        NO_TERMS,
        synthetic.scan,
        synthetic.read,
        synthetic.label_names,
        up_axis="+z",
        tried="made here",
    ),
    SourceFormat(
        synthetic_scenes.NAME,
        "the same rooms as whole point clouds with labels and boxes, one sample a room",
        NO_TERMS,
        synthetic_scenes.scan,
        synthetic_scenes.read,
        synthetic_scenes.label_names,
        "scenes",
        "+z",
        tried="made here",
    ),
)


def find_format(name: str) -> SourceFormat:
    """The format of that name.

    Raises:
        CallError: there is none.
    """
    for source_format in (*FORMATS, *GENERATORS):
        if source_format.name == name:
            return source_format
    names = [source_format.name for source_format in FORMATS]
    generators = [source_format.name for source_format in GENERATORS]
    close = difflib.get_close_matches(name, names + generators, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise CallError(
        f"unknown format {name!r}, wanted one of {', '.join(names)}{hint} (see `t4p shards formats`; "
        f"without any files: {', '.join(generators)})"
    )
