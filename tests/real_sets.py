"""Real frames of other layouts than readers exist for, built by hand from ../shared/data/README.md: set by set."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.images import encode_depth
from shards.schema import Frame, Matrix
from shards.sources import seven_scenes, tum
from shards.sources.frame_files import read_frame
from shards.sources.options import SourceOptions

ARKIT = np.diag([1.0, -1.0, -1.0, 1.0])
NED = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])  # columns: cv x, y, z in body axes


def seven_scenes_style(data: Path) -> list[Frame]:
    """Every tenth frame of a room, Kinect v1."""
    refs = seven_scenes.scan(data / "seven_scenes_style" / "data", SourceOptions())
    return [read_frame(ref) for ref in refs]


def fr1_rpy(data: Path) -> list[Frame]:
    """Nearly pure rotation, 34 degrees between two frames."""
    return [read_frame(ref) for ref in tum.scan(data / "tum_rgbd", SourceOptions())]


def arc(data: Path) -> list[Frame]:
    """A shelf at less than half a metre, sparse depth, bits turned on disk."""
    folder = data / "arc_label_fusion" / "data" / "labels"
    K = np.loadtxt(folder / "camera-intrinsics.color.txt").reshape(3, 3)
    frames = []
    for path in sorted(folder.glob("*.depth.png")):
        stem = path.name.removesuffix(".depth.png")
        turned = np.asarray(Image.open(path)).astype(np.uint16)
        depth = (turned >> 3) | (turned << 13)
        pose = np.loadtxt(folder / f"{stem}.pose.txt")
        color = (folder / f"{stem}.color.png").read_bytes()
        frames.append(_frame("arc", stem, depth, 10_000, K, pose, color=color, color_format="png"))
    return frames


def redwood(data: Path) -> list[Frame]:
    """Five rendered views."""
    folder = data / "redwood_open3d" / "RGBD"
    numbers = np.array((folder / "trajectory.log").read_text().split(), np.float64).reshape(-1, 19)
    K = np.array([[525.0, 0, 319.5], [0, 525.0, 239.5], [0, 0, 1]])
    return [
        _frame(
            "redwood",
            path.stem,
            np.asarray(Image.open(path)).astype(np.uint16),
            1000,
            K,
            numbers[i, 3:].reshape(4, 4),
            color=(folder / "color" / f"{path.stem}.jpg").read_bytes(),
        )
        for i, path in enumerate(sorted((folder / "depth").glob("*.png")))
    ]


def corridor(data: Path) -> list[Frame]:
    """A phone's LiDAR, 3D Scanner App; the surest depth alone. Without a picture a small grey one stands in."""
    folder = data / "3dscannerapp_corridor" / "All_Data"
    frames = []
    for path in sorted(folder.glob("frame_*.json")):
        meta, number = json.loads(path.read_text()), path.stem.removeprefix("frame_")
        depth = np.asarray(Image.open(folder / f"depth_{number}.png")).astype(np.uint16)
        sure = np.asarray(Image.open(folder / f"conf_{number}.png")) == 2
        K = _scaled(np.array(meta["intrinsics"]).reshape(3, 3), 256 / 1920)
        pose = np.array(meta["cameraPoseARFrame"]).reshape(4, 4) @ ARKIT
        frames.append(_frame("corridor", number, np.where(sure, depth, 0).astype(np.uint16), 1000, K, pose))
    return frames


def stray(data: Path) -> list[Frame]:
    """A phone's LiDAR, Stray Scanner; a small grey picture stands in for the video that is missing."""
    folder = data / "stray_scanner" / "demo2_dataset"
    K = _scaled(np.loadtxt(folder / "camera_matrix.csv", delimiter=","), 256 / 1920)
    with (folder / "odometry.csv").open(newline="") as lines:
        rows = {int(row["frame"]): row for row in csv.DictReader(lines, skipinitialspace=True)}
    frames = []
    for path in sorted((folder / "depth").glob("*.png")):
        row = rows[int(path.stem)]
        pose = _pose([float(row[name]) for name in ("x", "y", "z")], [float(row[f"q{axis}"]) for axis in "xyzw"])
        depth = np.asarray(Image.open(path)).astype(np.uint16)
        sure = np.asarray(Image.open(folder / "confidence" / path.name)) == 2
        frames.append(_frame("stray", path.stem, np.where(sure, depth, 0).astype(np.uint16), 1000, K, pose))
    return frames


def realsense(data: Path) -> list[Frame]:
    """A dish at half a metre, RealSense, poses of a fragment."""
    folder = data / "open3d_realsense"
    told = json.loads((folder / "camera_intrinsic.json").read_text())
    K = np.array(told["intrinsic_matrix"]).reshape(3, 3).T
    nodes = json.loads((folder / "fragments" / "fragment_optimized_004.json").read_text())["nodes"]
    return [
        _frame(
            "realsense",
            path.stem,
            np.asarray(Image.open(path)).astype(np.uint16),
            1000,
            K,
            np.array(nodes[int(path.stem) - 400]["pose"]).reshape(4, 4).T,
            color=(folder / "color" / f"{path.stem}.jpg").read_bytes(),
        )
        for path in sorted((folder / "depth").glob("*.png"))
    ]


def tartanair(data: Path) -> list[Frame]:
    """Two frames of a simulator, ten apart."""
    folder = data / "tartanair"
    K = np.array([[320.0, 0, 320], [0, 320.0, 240], [0, 0, 1]])
    poses = np.loadtxt(folder / "pose_left.txt")
    frames = []
    for path in sorted((folder / "depth_left").glob("*.npy")):
        number = path.name.split("_")[0]
        metres = np.load(path)
        depth = np.where(metres < 65, metres * 1000, 0).astype(np.uint16)
        row = poses[int(number)]
        color = (folder / "image_left" / f"{number}_left.png").read_bytes()
        pose = _pose(row[:3], row[3:]) @ NED
        frames.append(_frame("tartanair", number, depth, 1000, K, pose, color=color, color_format="png"))
    return frames


POSED: dict[str, Callable[[Path], list[Frame]]] = {
    "seven_scenes": seven_scenes_style,
    "fr1_rpy": fr1_rpy,
    "arc": arc,
    "redwood": redwood,
    "corridor": corridor,
    "stray": stray,
    "realsense": realsense,
    "tartanair": tartanair,
}


def without_poses(frames: Iterable[Frame]) -> list[Frame]:
    """The same frames of a source that has no poses."""
    return [replace(frame, world_from_camera=None) for frame in frames]


def _frame(
    scene_id: str,
    frame_id: str,
    depth: NDArray[np.uint16],
    depth_scale: float,
    K: Matrix,
    pose: Matrix,
    *,
    color: bytes | None = None,
    color_format: str = "jpg",
) -> Frame:
    if color is None:
        buffer = io.BytesIO()
        Image.new("RGB", depth.shape[::-1], (90, 90, 90)).save(buffer, "JPEG")
        color = buffer.getvalue()
    return Frame(
        dataset="folder",
        scene_id=scene_id,
        frame_id=frame_id,
        color=color,
        color_format=color_format,
        depth=encode_depth(depth),
        depth_scale=depth_scale,
        K_depth=K,
        K_color=K,
        color_from_depth=np.eye(4),
        world_from_camera=pose,
    )


def _scaled(K: Matrix, share: float) -> Matrix:
    scaled = K * share
    scaled[2, 2] = 1
    return scaled


def _pose(position: Iterable[float], quaternion: Iterable[float]) -> Matrix:
    """From x y z and a quaternion x y z w."""
    x, y, z, w = np.array(list(quaternion)) / np.linalg.norm(list(quaternion))
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = list(position)
    return pose
