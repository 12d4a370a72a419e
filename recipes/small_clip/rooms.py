"""The rooms that the small CLIP is made and measured on: rendered here, kept in memory, written nowhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.synthetic.furniture import LABEL_NAMES
from shards.synthetic.view import make_view

CLASS_NAMES = LABEL_NAMES[1:]  # "unlabelled" is 0; class k is label k + 1
NUM_STRUCTURE_CLASSES = 3  # wall, floor and ceiling come first, furniture after them
HEIGHT, WIDTH = 120, 160
_FRAME_STEP = 6  # of the positions along a path: between neighbours the camera turns by about 70 degrees


@dataclass(frozen=True)
class RoomSet:
    """Which rooms of a series, and how many views of each."""

    seed: int
    rooms: int
    frames_per_room: int = 4

    @property
    def num_frames(self) -> int:
        return self.rooms * self.frames_per_room


# Series of rooms that belong to the small CLIP alone. Whoever pre-trains, fine-tunes or measures a 3D network against
# it takes other seeds: features of rooms that the towers know by heart would flatter it.
TRAINING_ROOMS = RoomSet(seed=41, rooms=1000)
VALIDATION_ROOMS = RoomSet(seed=42, rooms=40)  # settings were chosen on these
TEST_ROOMS = RoomSet(seed=43, rooms=60)  # looked at once, for the scores that are shipped


@dataclass(frozen=True, eq=False)
class RoomFrames:
    """Views of rooms, N of them.

    Attributes:
        colors: (N, HEIGHT, WIDTH, 3) uint8.
        labels: (N, HEIGHT, WIDTH) uint8, positions in LABEL_NAMES, exact.
        captions: a sentence about each.
    """

    colors: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    captions: tuple[str, ...]


def render_rooms(rooms: RoomSet, on_frame: Callable[[int, int], None] | None = None) -> RoomFrames:
    """Render all views of some rooms, 15 ms each.

    Args:
        rooms: which.
        on_frame: called with (frames done, frames in all) after each.
    """
    colors = np.empty((rooms.num_frames, HEIGHT, WIDTH, 3), np.uint8)
    labels = np.empty((rooms.num_frames, HEIGHT, WIDTH), np.uint8)
    captions = []
    for index in range(rooms.num_frames):
        room_index, frame = divmod(index, rooms.frames_per_room)
        view = make_view(rooms.seed, room_index, frame * _FRAME_STEP, WIDTH, HEIGHT)
        colors[index], labels[index] = view.color, view.exact.semantic
        captions.append(view.caption)
        if on_frame is not None:
            on_frame(index + 1, rooms.num_frames)
    return RoomFrames(colors, labels, tuple(captions))
