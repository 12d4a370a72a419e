"""What is looked at in one sample: depth in metres, how its values are made, cameras, pose, label ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.headers import jpeg_size, png_size
from shards.images import decode_depth, decode_labels
from shards.scene import Scene
from shards.schema import Frame, Matrix

_ROWS_OF_DIFFERENCES = 64  # of an image, spread over it: the others say the same
_FEWEST_DIFFERENCES = 200  # between neighbours, that tell how values are made
_SAME_BITS = 0.97  # of steps: the others may be where the highest bits change, which have become the lowest
_ROUGH = 0.2
_FEWEST_VALUES = 24  # different ones: a drawing of a few planes is no sensor's depth


@dataclass(frozen=True, eq=False)
class View:
    """A frame, decoded as far as it is looked at.

    Attributes:
        key: names it in messages.
        position: of it in its scene, from 0.
        depth: (H, W) float32 metres, 0 where there is no reading.
        depth_scale: units per metre.
        K_depth, K_color: (3, 3) pixels.
        color_size: (width, height); None where the header does not say.
        world_from_camera: (4, 4); None without a pose.
        coding: how its values are made.
        class_ids: that occur in its semantic labels; None without.
    """

    key: str
    position: int
    depth: NDArray[np.float32]
    depth_scale: float
    K_depth: Matrix
    K_color: Matrix
    color_size: tuple[int, int] | None
    world_from_camera: Matrix | None
    coding: Coding
    class_ids: tuple[int, ...] | None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of its depth."""
        return self.depth.shape[1], self.depth.shape[0]

    @property
    def median(self) -> float:
        """Metres; nan without a reading."""
        return float(np.median(self.depth[self.depth > 0])) if (self.depth > 0).any() else float("nan")

    @property
    def share(self) -> float:
        """Of its pixels, those with a reading."""
        return float((self.depth > 0).mean())


@dataclass(frozen=True)
class Coding:
    """How the 16 bits of depth are used, as steps between neighbouring pixels tell.

    Attributes:
        is_known: there are enough steps to tell.
        is_noise: neighbours differ as if drawn by chance: of no surface.
        step_bits: so many low bits are never touched by a step, or nearly never.
        is_swapped: with the two bytes exchanged, neighbours differ far less.
    """

    is_known: bool
    is_noise: bool = False
    step_bits: int = 0
    is_swapped: bool = False


@dataclass(frozen=True)
class Cloud:
    """A whole scene, as far as it is looked at.

    Attributes:
        key: names it in messages.
        extent: metres, along x, y and z, of all but the outermost hundredth of its points at either end.
        class_ids: that occur; None without labels.
    """

    key: str
    extent: tuple[float, float, float]
    class_ids: tuple[int, ...] | None


def view_of(frame: Frame, key: str, position: int) -> View:
    """Decode a frame as far as it is looked at.

    Raises:
        BrokenImageError: its depth or labels do not decode.
    """
    # Without a look at K, which is judged here with everything else.
    raw = decode_depth(frame.depth, size=frame.depth_size, no_reading=frame.no_reading, check_chunks=False)
    size = png_size(frame.color) if frame.color_format == "png" else jpeg_size(frame.color)
    return View(
        key=key,
        position=position,
        depth=raw.astype(np.float32) / np.float32(frame.depth_scale),
        depth_scale=frame.depth_scale,
        K_depth=frame.K_depth,
        K_color=frame.K_color,
        color_size=size,
        world_from_camera=frame.world_from_camera,
        coding=coding_of(raw),
        class_ids=None if frame.semantic is None else _ids(decode_labels(frame.semantic)),
    )


def cloud_of(scene: Scene, key: str) -> Cloud:
    """Measure a whole scene."""
    low, high = np.quantile(scene.points[:: max(1, len(scene.points) // 20_000)], (0.01, 0.99), axis=0)
    x, y, z = (high - low).tolist()
    return Cloud(key, (x, y, z), None if scene.semantic is None else _ids(scene.semantic))


def coding_of(raw: NDArray[np.uint16]) -> Coding:
    """How 16 bits of depth are used.

    Args:
        raw: (H, W), 0 means no reading.
    """
    rows = raw[:: max(1, raw.shape[0] // _ROWS_OF_DIFFERENCES)]
    columns = raw[:, :: max(1, raw.shape[1] // _ROWS_OF_DIFFERENCES)]
    # Both ways: a slope may go by 8 from column to column, and not from row to row as well.
    left = np.concatenate([rows[:, :-1].ravel(), columns[:-1].ravel()])
    right = np.concatenate([rows[:, 1:].ravel(), columns[1:].ravel()])
    both = (left > 0) & (right > 0) & (left != right)
    left, right = left[both].astype(np.int64), right[both].astype(np.int64)
    if len(left) < _FEWEST_DIFFERENCES or len(np.unique(left)) < _FEWEST_VALUES:
        return Coding(is_known=False)
    steps = np.abs(left - right)
    bits = 0
    while bits < 8 and (steps % (2 << bits) == 0).mean() > _SAME_BITS:
        bits += 1
    rough, rough_if_swapped = _roughness(left, right), _roughness(_swapped(left), _swapped(right))
    is_swapped = rough_if_swapped < min(_ROUGH, rough / 8)
    return Coding(True, rough > _ROUGH and not is_swapped, 0 if is_swapped else bits, is_swapped)


def _roughness(left: NDArray[np.int64], right: NDArray[np.int64]) -> float:
    """The usual step beside the usual value: a hundredth of real depth, half of noise."""
    return float(np.median(np.abs(left - right)) / np.median(left))


def _swapped(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return (values >> 8) | ((values & 0xFF) << 8)


def _ids(labels: NDArray[np.uint16] | NDArray[np.uint8]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(np.bincount(labels.ravel())).tolist())
