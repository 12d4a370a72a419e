"""Procedural rooms as whole scenes: one labelled point cloud per room, fused from views of several tours."""

from dataclasses import dataclass
from pathlib import Path

from shards.scene import WHOLE, Scene
from shards.sources.options import SourceOptions
from shards.sources.synthetic import label_names, parse_series, scene_name
from shards.synthetic.cloud import make_scene

__all__ = ["NAME", "SyntheticSceneRef", "label_names", "read", "scan"]

NAME = "synthetic-scenes"
_DEFAULT_FRAMES = 48  # take the camera once round on each of its tours


@dataclass(frozen=True, slots=True)
class SyntheticSceneRef:
    """One room, not made yet."""

    scene_id: str
    frame_id: str
    seed: int
    room_index: int
    num_frames: int
    width: int
    height: int
    furniture: int

    @property
    def origin(self) -> str:
        """What it is made from, for messages."""
        return f"room {self.room_index} of seed {self.seed}, {self.num_frames} frames"


def scan(root: Path, options: SourceOptions) -> tuple[SyntheticSceneRef, ...]:
    """Every room that `root`, the text of a RoomSeries, asks for.

    Raises:
        CallError: the text is malformed, or a depth scale was given.
    """
    series = parse_series(root, options, NAME, _DEFAULT_FRAMES)
    return tuple(
        SyntheticSceneRef(
            scene_id=scene_name(series, room_index),
            frame_id=WHOLE,
            seed=series.seed,
            room_index=room_index,
            num_frames=series.frames,
            width=series.width,
            height=series.height,
            furniture=series.furniture,
        )
        for room_index in range(series.first, series.first + series.rooms)
    )


def read(ref: SyntheticSceneRef) -> Scene:
    """Make one room."""
    size = (ref.num_frames, ref.width, ref.height)
    return make_scene(ref.seed, ref.room_index, *size, NAME, ref.scene_id, ref.furniture)
