"""Files of raw datasets: every message names the file, what was found and what was wanted."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.errors import CallError, ShardError
from shards.images import BrokenImageError, decode_any_depth, encode_depth, is_depth_png
from shards.schema import Matrix

COLOR_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class SourceOptions:
    """What the user may say about a source.

    Attributes:
        depth_scale: depth units per metre; None takes the format's own.
    """

    depth_scale: float | None = None


def require_folder(root: Path) -> None:
    """Raise CallError unless `root` is a folder that can be listed."""
    if not root.exists():
        raise CallError(f"{root}: no such file or folder; give the folder that holds the raw dataset")
    if not root.is_dir():
        raise CallError(f"{root}: not a folder; give the folder that holds the raw dataset")


def walk_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder under `root` with its file names, all in natural order.

    Raises:
        ShardError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise ShardError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=True):
        subfolders.sort(key=natural_order)
        yield Path(folder), sorted(names, key=natural_order)


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key under which frame 2 precedes frame 10."""
    pieces = re.split(r"(\d+)", name)
    return tuple((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces) + ((-2, name),)


def color_format(path: Path) -> str:
    """ "jpg" or "png", by the file's suffix."""
    return "png" if path.suffix.lower() == ".png" else "jpg"


def read_bytes(path: Path) -> bytes:
    """The whole file; ShardError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """The whole file as UTF-8; ShardError when it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def read_depth(path: Path, no_reading: int = 0) -> bytes:
    """A depth image as a 16-bit grayscale PNG whose 0 means no reading.

    The bytes stay as found where they already are that (`check_frame` decodes them, once); otherwise the image is
    encoded anew.

    Args:
        path: PNG, PGM or TIFF of one integer channel.
        no_reading: value that also means no reading.

    Raises:
        ShardError: missing, damaged, or another kind of image.
    """
    data = read_bytes(path)
    if no_reading == 0 and is_depth_png(data):
        return data
    try:
        depth = decode_any_depth(data)
    except BrokenImageError as error:
        raise ShardError(f"{path}: {error}; restore the file, or remove the frame, and pack again") from error
    invalid = depth == no_reading
    if is_depth_png(data) and not invalid.any():
        return data
    return encode_depth(np.where(invalid, np.uint16(0), depth))


def read_matrix(path: Path) -> NDArray[np.float64]:
    """A matrix of numbers separated by white space or commas.

    Raises:
        ShardError: not a rectangle of numbers.
    """
    rows = [line.replace(",", " ").split() for line in read_text(path).splitlines() if line.strip()]
    try:
        matrix = np.array([[float(number) for number in row] for row in rows], dtype=np.float64)
    except ValueError as error:
        raise ShardError(f"{path}: not a matrix of numbers ({error})") from error
    if matrix.ndim != 2:
        raise ShardError(f"{path}: empty, wanted a matrix of numbers")
    return matrix


def read_intrinsics(path: Path) -> Matrix:
    """K (3, 3) in pixels from a 3x3 or 4x4 matrix file, or from one line fx fy cx cy.

    Raises:
        ShardError: another shape.
    """
    matrix = read_matrix(path)
    if matrix.size == 4:
        return pinhole(*(float(number) for number in matrix.ravel()))
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ShardError(f"{path}: found {matrix.shape[0]}x{matrix.shape[1]} numbers, wanted 3x3, 4x4 or fx fy cx cy")
    return np.ascontiguousarray(matrix[:3, :3])


def read_world_from_camera(path: Path) -> Matrix | None:
    """A 4x4 camera-to-world matrix; None where tracking was lost (numbers not finite, or all 0).

    Raises:
        ShardError: not 4x4.
    """
    matrix = read_matrix(path)
    if matrix.shape != (4, 4):
        raise ShardError(f"{path}: found {matrix.shape[0]}x{matrix.shape[1]} numbers, wanted a 4x4 camera-to-world")
    return matrix if np.isfinite(matrix).all() and matrix[:3, :3].any() else None


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Matrix:
    """K (3, 3) of a camera without skew, pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
