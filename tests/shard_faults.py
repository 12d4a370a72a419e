"""The usual faults of RGB-D data, put into frames that are right: each changes what is told of one frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from shards.plausible.facts import View, coding_of, view_of
from shards.plausible.look import places
from shards.plausible.verdicts import Finding, judge_views
from shards.schema import Frame, Matrix

Fault = Callable[[View], View]
_FLIP, _MIRROR = np.diag([1.0, -1.0, -1.0, 1.0]), np.diag([1.0, -1.0, 1.0, 1.0])


def looked_at(frames: Sequence[Frame]) -> tuple[View, ...]:
    """The views of a scene that a look takes."""
    return tuple(view_of(frames[place], frames[place].frame_id, place) for place in places(len(frames)))


def judged(views: Sequence[View]) -> list[Finding]:
    """What a look says of a scene of them."""
    return judge_views(views)


def _poses(change: Callable[[Matrix], Matrix]) -> Fault:
    def changed(view: View) -> View:
        assert view.world_from_camera is not None
        return replace(view, world_from_camera=change(view.world_from_camera))

    return changed


def _depth(factor: float) -> Fault:
    return lambda view: replace(view, depth=view.depth * np.float32(factor), depth_scale=view.depth_scale / factor)


def _K(factor: float) -> Fault:
    def scaled(K: Matrix) -> Matrix:
        return K * np.array([[factor], [factor], [1.0]])

    return lambda view: replace(view, K_depth=scaled(view.K_depth), K_color=scaled(view.K_color))


def _translations(factor: float) -> Fault:
    def changed(pose: Matrix) -> Matrix:
        pose = pose.copy()
        pose[:3, 3] *= factor
        return pose

    return _poses(changed)


def _bits_turned(view: View) -> View:
    raw = np.rint(view.depth * view.depth_scale).astype(np.uint16)
    turned = ((raw << 3) | (raw >> 13)).astype(np.uint16)
    return replace(view, depth=turned.astype(np.float32) / np.float32(view.depth_scale), coding=coding_of(turned))


def _bytes_swapped(view: View) -> View:
    swapped = np.rint(view.depth * view.depth_scale).astype(np.uint16).byteswap()
    return replace(view, depth=swapped.astype(np.float32) / np.float32(view.depth_scale), coding=coding_of(swapped))


FAULTS: dict[str, Fault] = {
    "inverted": _poses(lambda pose: np.linalg.inv(pose)),
    "flipped": _poses(lambda pose: pose @ _FLIP),
    "inverted and flipped": _poses(lambda pose: np.linalg.inv(pose @ _FLIP)),
    "mirrored": _poses(lambda pose: _MIRROR @ pose @ _MIRROR),
    "millimetres": _translations(1000.0),
    "centimetres": _translations(100.0),
    "depth x 1000": _depth(1000.0),
    "depth x 10": _depth(10.0),
    "depth x 5": _depth(5.0),
    "depth x 2": _depth(2.0),
    "depth / 2": _depth(1 / 2),
    "depth / 5": _depth(1 / 5),
    "depth / 10": _depth(1 / 10),
    "K x 2": _K(2.0),
    "K x 1.5": _K(1.5),
    "K / 2": _K(0.5),
    "K / 7.5": _K(1 / 7.5),
    "bits turned": _bits_turned,
    "bytes swapped": _bytes_swapped,
}
