"""Many different frames out of a few real ones, in the layout of 7-Scenes: what readers and packers are measured on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def multiply_frames(source: Path, target: Path, count: int) -> None:
    """Fill `target` with `count` frames of a folder of frame-NNNNNN.{color.jpg,depth.png,pose.txt}.

    Every copy of a frame is rolled by other columns, every second mirrored, its depth moved by a millimetre; colours
    are encoded with the tables of the JPEG they come from. So all bytes differ, and sizes are those of the sensor.
    """
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "camera-intrinsics.txt", target)
    found = sorted(source.glob("frame-*.color.jpg"))
    with ProcessPoolExecutor() as pool:
        for _ in pool.map(partial(_make_frame, found, target), range(count), chunksize=100):
            pass


def _make_frame(found: Sequence[Path], target: Path, number: int) -> None:
    turn, which = divmod(number, len(found))
    source, name = found[which].parent, found[which].name.removesuffix(".color.jpg")
    color = Image.open(found[which])
    depth = np.asarray(Image.open(source / f"{name}.depth.png")).astype(np.uint16)
    tables = color.quantization
    pixels, columns = np.asarray(color), 40 * turn
    pixels, depth = np.roll(pixels, columns, axis=1), np.roll(depth, columns, axis=1)
    if turn % 2:
        pixels, depth = pixels[:, ::-1], depth[:, ::-1]
    measured = (depth > 0) & (depth < 65535)
    depth = np.where(measured, depth + turn, 0).astype(np.uint16)
    out = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "JPEG", qtables=tables, subsampling=2)
    (target / f"frame-{number:06d}.color.jpg").write_bytes(out.getvalue())
    Image.fromarray(np.ascontiguousarray(depth)).save(target / f"frame-{number:06d}.depth.png", compress_level=4)
    shutil.copy(source / f"{name}.pose.txt", target / f"frame-{number:06d}.pose.txt")
