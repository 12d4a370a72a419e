"""Small raw frames of a slanted plane, 48x64, colour and depth different in each, in two layouts that are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from t4p.config.data import AugmentConfig
from t4p.data.sample import SampleSettings

# How such a frame becomes a sample.
SAMPLES = SampleSettings(
    image_size=(48, 64),
    cell_grid=(6, 8),
    decoder_grid=(12, 16),
    pixel_stride=2,
    max_depth=10.0,
    in_world=True,
    voxel_size=0.1,
    num_strides=2,
    point_features=("color",),
    num_pairs_e=20,
    num_pairs_d=30,
    augment=AugmentConfig(),
    seed=5,
)

K = [[60, 0, 31.5], [0, 60, 23.5], [0, 0, 1]]


def images(num_frames: int) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Colour and depth (millimetres) of each frame."""
    rng = np.random.default_rng(0)
    for index in range(num_frames):
        depth = (1500 + 10 * index + np.add.outer(np.arange(48), np.arange(64)) * 5).astype(np.uint16)
        yield Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)), Image.fromarray(depth)


def write_seven_scenes(folder: Path, num_frames: int) -> None:
    """The layout `seven-scenes`, one sequence."""
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", K)
    for index, (color, depth) in enumerate(images(num_frames)):
        color.save(folder / f"frame-{index:06d}.color.png")
        depth.save(folder / f"frame-{index:06d}.depth.png")
        np.savetxt(folder / f"frame-{index:06d}.pose.txt", np.eye(4))


def write_folder(folder: Path, num_frames: int) -> None:
    """The layout `folder`, one scene."""
    for name in ("color", "depth"):
        (folder / name).mkdir(parents=True)
    np.savetxt(folder / "intrinsic.txt", K)
    for index, (color, depth) in enumerate(images(num_frames)):
        color.save(folder / "color" / f"{index:06d}.jpg")
        depth.save(folder / "depth" / f"{index:06d}.png")
