"""Files of raw datasets: every message names the file, what was found and what was wanted."""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown
from shards.errors import CallError, ShardError
from shards.images import BrokenImageError, decode_any_depth, encode_depth, is_depth_png
from shards.schema import Matrix

MAX_FILE_BYTES = 1 << 28
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
        ShardError: a folder cannot be listed, or is a link to another place.
    """

    def refuse(error: OSError) -> None:
        raise ShardError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for folder, subfolders, names in os.walk(root, onerror=refuse):
        subfolders.sort(key=natural_order)
        for name in subfolders:
            require_no_link(Path(folder) / name)
        yield Path(folder), sorted(names, key=natural_order)


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key under which frame 2 precedes frame 10."""
    pieces = re.split(r"(\d+)", name)
    return tuple((int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces) + ((-2, name),)


def color_format(path: Path) -> str:
    """ "jpg" or "png", by the file's suffix."""
    return "png" if path.suffix.lower() == ".png" else "jpg"


def require_no_link(path: Path) -> None:
    """Raise ShardError where a file or folder of a source is a symbolic link: it may lead to what nobody meant to pack.

    The folder that is given as a source may be one: somebody typed its name.
    """
    if path.is_symlink():
        raise ShardError(
            f"{path}: a symbolic link, and what it leads to is not packed along; put the files themselves there, or "
            "give the folder it leads to as the source"
        )


def beside(folder: Path, name: str, where: str) -> Path:
    """The file that a list names, relative to its folder.

    Raises:
        ShardError: the name leads out of the folder.
    """
    if not name or os.path.isabs(name) or ".." in Path(name).parts or "\0" in name:
        raise ShardError(f"{where}: names '{shown(name)}', which is not within {folder}; wanted names of files there")
    return folder / name


def read_bytes(path: Path) -> bytes:
    """The whole file; ShardError when it cannot be read, is a link, pipe or device, or larger than a raw file is."""
    require_no_link(path)
    try:
        # Opening a pipe would wait for somebody to write; a link made since the look above is not followed.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise ShardError(f"{path}: no file but a pipe, device or folder; put a file there, or remove it")
            if facts.st_size > MAX_FILE_BYTES:
                raise ShardError(
                    f"{path}: {facts.st_size} bytes, and a file of one frame has at most {MAX_FILE_BYTES}; is it "
                    "another kind of file?"
                )
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from error


def read_text(path: Path) -> str:
    """The whole file as UTF-8; ShardError when it cannot be read."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error


def read_depth(path: Path) -> bytes:
    """A depth image as a 16-bit grayscale PNG: the bytes as found where they already are that, else encoded anew.

    Args:
        path: PNG, PGM or TIFF of one integer channel.

    Raises:
        ShardError: missing, damaged, or another kind of image.
    """
    data = read_bytes(path)
    if is_depth_png(data):
        return data
    try:
        depth = decode_any_depth(data)
    except BrokenImageError as error:
        raise ShardError(f"{path}: {error}; restore the file, or remove the frame, and pack again") from error
    return encode_depth(depth)


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
