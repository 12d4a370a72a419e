"""Lays frames of ARKit out as phone apps export them, from the published descriptions of their layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.headers import jpeg_size


@dataclass
class ArkitFrame:
    """One frame: files, K (3, 3) of the colour image, (4, 4) world from camera with ARKit's axes, seconds."""

    color: Path
    depth: Path
    confidence: np.ndarray
    K: np.ndarray
    size: tuple[int, int]
    pose: np.ndarray
    time: float


def real_frames(all_data: Path) -> list[ArkitFrame]:
    """Those of a real capture of the 3D Scanner App that have colour."""
    frames = []
    for color in sorted(all_data.glob("frame_*.jpg")):
        number = color.stem.removeprefix("frame_")
        fields = json.loads((all_data / f"frame_{number}.json").read_text())
        pose = np.reshape(fields["cameraPoseARFrame"], (4, 4))
        pose[3] = (0, 0, 0, 1)
        frames.append(
            ArkitFrame(
                color,
                all_data / f"depth_{number}.png",
                np.asarray(Image.open(all_data / f"conf_{number}.png")),
                np.reshape(fields["intrinsics"], (3, 3)),
                jpeg_size(color.read_bytes()) or (0, 0),
                pose,
                fields["time"],
            )
        )
    return frames


def lay_out_polycam(frames: Sequence[ArkitFrame], root: Path, corrected: bool = True, sizes: bool = True) -> Path:
    """keyframes/ of an export; without `sizes` the corrected cameras do not say that of their picture."""
    keyframes = root / "keyframes"
    kinds = ("", "corrected_") if corrected else ("",)
    for name in ("depth", "confidence", *(f"{kind}{what}" for kind in kinds for what in ("images", "cameras"))):
        (keyframes / name).mkdir(parents=True)
    for frame in frames:
        stem = str(round(frame.time * 1e6))
        shutil.copy(frame.depth, keyframes / "depth" / f"{stem}.png")
        grades = np.array([0, 127, 255], np.uint8)[frame.confidence]
        Image.fromarray(grades).save(keyframes / "confidence" / f"{stem}.png")
        for kind in kinds:
            shutil.copy(frame.color, keyframes / f"{kind}images" / f"{stem}.jpg")
            fields = {"fx": frame.K[0, 0], "fy": frame.K[1, 1], "cx": frame.K[0, 2], "cy": frame.K[1, 2]}
            fields |= {f"t_{row}{column}": frame.pose[row, column] for row in range(3) for column in range(4)}
            if sizes or not kind:
                fields |= {"width": frame.size[0], "height": frame.size[1]}
            (keyframes / f"{kind}cameras" / f"{stem}.json").write_text(json.dumps(fields))
    (root / "mesh_info.json").write_text("{}")
    return root


def lay_out_nerfcapture(frames: Sequence[ArkitFrame], root: Path, suffix: str = ".jpg") -> Path:
    """images/k with images/k.depth.png in units of 10 / 65535 m; `suffix` is what its list gives pictures."""
    (root / "images").mkdir(parents=True)
    unit, listed = 10 / 65535, []
    for k, frame in enumerate(frames):
        shutil.copy(frame.color, root / "images" / f"{k}.jpg")
        metres = _pixels(frame.depth) / 1000
        depth = np.clip(np.rint(metres / unit), 0, 65535).astype(np.uint16)
        Image.fromarray(depth).save(root / "images" / f"{k}.depth.png")
        listed.append(
            {
                "file_path": f"images/{k}{suffix}",
                "depth_path": f"images/{k}.depth.png",
                "transform_matrix": frame.pose.tolist(),
                "timestamp": frame.time,
                **_intrinsics(frame),
            }
        )
    (root / "transforms.json").write_text(json.dumps({"integer_depth_scale": unit, "frames": listed}))
    return root


def lay_out_nerfstudio(
    frames: Sequence[ArkitFrame],
    root: Path,
    applied: np.ndarray | None = None,
    scale: float = 1.0,
    metres: bool = False,
) -> Path:
    """images/ and depth/, with poses that were turned by (3, 4) `applied` and multiplied by `scale`."""
    for name in ("images", "depth"):
        (root / name).mkdir(parents=True)
    listed = []
    for k, frame in enumerate(frames):
        shutil.copy(frame.color, root / "images" / f"frame_{k + 1}.jpg")
        depth = f"depth/frame_{k + 1}.{'npy' if metres else 'png'}"
        if metres:
            np.save(root / depth, (_pixels(frame.depth) / 1000).astype(np.float32))
        else:
            shutil.copy(frame.depth, root / depth)
        pose = frame.pose if applied is None else np.vstack([applied, [0, 0, 0, 1]]) @ frame.pose
        pose = pose.copy()
        pose[:3, 3] *= scale
        listed.append(
            {
                "file_path": f"./images/frame_{k + 1}.jpg",
                "depth_file_path": depth,
                "transform_matrix": pose.tolist(),
                **_intrinsics(frame),
            }
        )
    fields = {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "frames": listed[::-1]}
    if applied is not None:
        fields["applied_transform"] = applied.tolist()
    if scale != 1:
        fields["applied_scale"] = scale
    (root / "transforms.json").write_text(json.dumps(fields))
    return root


def _intrinsics(frame: ArkitFrame) -> dict[str, float]:
    K, (width, height) = frame.K, frame.size
    return {"fl_x": K[0, 0], "fl_y": K[1, 1], "cx": K[0, 2], "cy": K[1, 2], "w": width, "h": height}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.uint16)
