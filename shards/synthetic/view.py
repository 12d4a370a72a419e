"""One frame of one room: everything that is known about it, and the Frame that is packed.

A view depends on (seed, room, frame) and the image size alone, so any worker makes the same bytes, in any order.
"""

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.images import encode_depth
from shards.schema import Box, Frame, Matrix
from shards.synthetic.appearance import Appearance, color_image, draw_appearance
from shards.synthetic.captions import caption
from shards.synthetic.draws import DECIMALS, Purpose, generator
from shards.synthetic.raycast import Render, intrinsics_of_size, render
from shards.synthetic.room import Room, RoomObject, build_room
from shards.synthetic.sensor import DEPTH_SCALE, sense_depth
from shards.synthetic.trajectory import CameraPath, plan_path

MAX_FRAMES = 10**6  # of one tour
_MAX_CACHED_ROOMS = 4  # frames of a room come one after the other


@dataclass(frozen=True, eq=False)
class Stage:
    """A room with its look and the way of the camera through it."""

    room: Room
    appearance: Appearance
    path: CameraPath


@dataclass(frozen=True, eq=False)
class View:
    """One frame of a room.

    Attributes:
        color: (H, W, 3) uint8.
        depth: (H, W) uint16, the sensor's reading, DEPTH_SCALE units per metre; 0 means no reading.
        K: (3, 3) pixels, of both images.
        world_from_camera: (4, 4) rigid, metres.
        exact: what a perfect sensor and annotator would see.
        caption: a sentence.
        objects: those with at least one pixel, by instance id.
    """

    color: NDArray[np.uint8]
    depth: NDArray[np.uint16]
    K: Matrix
    world_from_camera: Matrix
    exact: Render
    caption: str
    objects: tuple[RoomObject, ...]


@lru_cache(maxsize=_MAX_CACHED_ROOMS)
def build_stage(seed: int, room_index: int, tour: int = 0, furniture: int = 100) -> Stage:
    """The room of (seed, room_index, furniture), ready to be looked at; the last few are kept."""
    room = build_room(seed, room_index, furniture)
    return Stage(room, draw_appearance(room), plan_path(room, tour))


def exact_view(
    seed: int, room_index: int, frame_index: int, width: int, height: int, tour: int = 0, furniture: int = 100
) -> Render:
    """The noise-free geometry and labels of a frame; arguments as those of `make_view`."""
    stage = build_stage(seed, room_index, tour, furniture)
    pose = stage.path.world_from_camera(frame_index)
    return render(stage.room, intrinsics_of_size(width, height), width, height, pose)


def make_view(
    seed: int, room_index: int, frame_index: int, width: int, height: int, tour: int = 0, furniture: int = 100
) -> View:
    """Make one frame.

    Args:
        seed: seed of the series of rooms, 0 to draws.MAX_NUMBER.
        room_index: in the series, likewise.
        frame_index: along the path of the camera, below MAX_FRAMES.
        width: width of the images, pixels.
        height: height of the images, pixels.
        tour: which of the paths through the room, 0 to 1000; packed frames are of tour 0.
        furniture: size of the pieces, per cent of what is usual.
    """
    stage = build_stage(seed, room_index, tour, furniture)
    exact = exact_view(seed, room_index, frame_index, width, height, tour, furniture)
    draw = tour * MAX_FRAMES + frame_index  # no two pictures of a room share their noise
    seen = set(np.unique(exact.instance).tolist())
    return View(
        color=color_image(exact, stage.appearance, generator(seed, room_index, Purpose.EXPOSURE, draw)),
        depth=sense_depth(exact, generator(seed, room_index, Purpose.DEPTH_SENSOR, draw)),
        K=intrinsics_of_size(width, height),
        world_from_camera=stage.path.world_from_camera(frame_index),
        exact=exact,
        caption=caption(exact, generator(seed, room_index, Purpose.CAPTION, draw)),
        objects=tuple(one for one in stage.room.objects if one.instance_id in seen),
    )


def camera_boxes(view: View) -> tuple[Box, ...]:
    """The boxes of a view's objects in the camera's frame: box i is of the i-th nonzero id of the instance image."""
    camera_from_world = np.linalg.inv(view.world_from_camera)
    return tuple(
        Box(one.label, (camera_from_world @ one.world_from_box).round(DECIMALS), one.size) for one in view.objects
    )


def frame_of_view(view: View, dataset: str, scene_id: str, frame_id: str) -> Frame:
    """Encode a view: depth and labels lossless, colour as a JPEG of quality 95 without chroma subsampling.

    The noise of the picture makes a PNG of 160x120 take 36 KB, this JPEG 15. Subsampled chroma would save 5 more and
    smear the legs of chairs, two pixels wide, into the floor.
    """
    return Frame(
        dataset=dataset,
        scene_id=scene_id,
        frame_id=frame_id,
        color=_encode_jpeg(view.color),
        color_format="jpg",
        depth=encode_depth(view.depth),
        depth_scale=DEPTH_SCALE,
        K_depth=view.K,
        K_color=view.K,
        color_from_depth=np.eye(4),
        world_from_camera=view.world_from_camera,
        semantic=_encode_png(view.exact.semantic),
        instance=_encode_png(view.exact.instance.astype(np.uint8)),  # a room has fewer than 255 objects
        caption=view.caption,
        boxes=camera_boxes(view),
    )


def _encode_jpeg(color: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(color).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _encode_png(ids: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()
