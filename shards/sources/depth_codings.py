"""The forms in which raw data holds depth, each decoded to uint16 units: one table, a function a row."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.images import BrokenImageError, decode_any_depth

Depth = NDArray[np.uint16]
Size = tuple[int, int] | None
_MOST = 65535


def turned(data: bytes, size: Size, scale: float) -> Depth:
    """An image whose 16 bits were turned left by three, as SUN RGB-D stores them."""
    depth = decode_any_depth(data)
    return (depth >> 3 | depth << 13).astype(np.uint16)


def npy(data: bytes, size: Size, scale: float) -> Depth:
    """A NumPy file (H, W): units as integers, or metres as floats."""
    try:
        array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise BrokenImageError(f"depth cannot be decoded: not a NumPy file of numbers ({error})") from error
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "uif":
        raise BrokenImageError(f"depth is {array.dtype} of shape {array.shape}, wanted numbers (H, W)")
    if array.dtype.kind == "f":
        return units_of_metres(array, scale)
    if array.size and not 0 <= array.min() <= array.max() <= _MOST:
        raise BrokenImageError(f"depth holds values from {array.min()} to {array.max()}, wanted 0 to {_MOST}")
    return array.astype(np.uint16)


def zlib_rows(data: bytes, size: Size, scale: float) -> Depth:
    """zlib of little-endian uint16 rows."""
    assert size is not None
    wanted = 2 * size[0] * size[1]
    try:
        decoder = zlib.decompressobj()
        rows = decoder.decompress(data, wanted + 1)
    except zlib.error as error:
        raise BrokenImageError(f"depth cannot be decoded: not zlib ({error})") from error
    return raw_rows(rows, size, scale)


def raw_rows(data: bytes, size: Size, scale: float) -> Depth:
    """Little-endian uint16 rows."""
    assert size is not None
    width, height = size
    if len(data) != 2 * width * height:
        raise BrokenImageError(
            f"depth has {len(data)} bytes or more, {width}x{height} of 16 bits have {2 * width * height}"
        )
    return np.frombuffer(data, "<u2").reshape(height, width).astype(np.uint16, copy=False)


# How depth is encoded, besides "image": a 16-bit image, whose bytes are packed as found where they are PNG.
DEPTH_CODINGS: Mapping[str, Callable[[bytes, Size, float], Depth]] = {
    "turned": turned,
    "npy": npy,
    "zlib": zlib_rows,
    "raw": raw_rows,
}


def units_of_metres(metres: NDArray[np.floating], scale: float) -> Depth:
    """(H, W) metres as uint16 units, `scale` of them a metre; what is not finite, not above 0 or too far is 0."""
    units = np.rint(np.asarray(metres, np.float64) * scale)
    with np.errstate(invalid="ignore"):
        good = (units >= 1) & (units <= _MOST)
    return np.where(good, units, 0).astype(np.uint16)


def decode(coding: str, data: bytes, size: Size, scale: float, where: str) -> Depth:
    """(H, W) uint16 of one image.

    Args:
        coding: of DEPTH_CODINGS, or "image".
        size: (width, height) of what has no header to say it.
        scale: units per metre.

    Raises:
        ShardError: damaged, or of another kind; `where` names it.
    """
    try:
        return decode_any_depth(data) if coding == "image" else DEPTH_CODINGS[coding](data, size, scale)
    except BrokenImageError as error:
        raise ShardError(f"{where}: {error}; restore the file, or remove the frame, and pack again") from error
