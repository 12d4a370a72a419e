"""Procedural rooms, made on the spot: the source is a text such as `seed=1,rooms=20`, and no folder."""

import dataclasses
import difflib
from dataclasses import dataclass
from pathlib import Path

from shards.errors import CallError
from shards.schema import Frame
from shards.sources.options import SourceOptions
from shards.synthetic.draws import MAX_NUMBER
from shards.synthetic.furniture import LABEL_NAMES
from shards.synthetic.view import MAX_FRAMES, frame_of_view, make_view

NAME = "synthetic"
_LEAST = {"rooms": 1, "frames": 1, "width": 16, "height": 12, "furniture": 50}
_MOST = {
    "seed": MAX_NUMBER,
    "first": MAX_NUMBER,
    "rooms": 10**7,
    "frames": MAX_FRAMES,
    "width": 4096,
    "height": 4096,
    "furniture": 110,  # a wardrobe reaches the ceiling
}
_REQUIRED = ("seed", "rooms")


@dataclass(frozen=True)
class RoomSeries:
    """Which rooms to make, and how to look at them.

    Attributes:
        seed: seed of the series; the same number of a room in two series means two rooms.
        rooms: how many.
        first: index of the first; a training and a validation part are two ranges of one series, or two seeds.
        frames: frames of each room, along the path of its camera; each turns by 9 to 15 degrees on its round.
        width: width of the images, pixels.
        height: height of the images, pixels.
        furniture: size of the pieces, per cent of what is usual: rooms that no series has seen.
    """

    seed: int
    rooms: int
    first: int = 0
    frames: int = 8
    width: int = 160
    height: int = 120
    furniture: int = 100


@dataclass(frozen=True, slots=True)
class SyntheticRef:
    """One frame, not made yet."""

    scene_id: str
    frame_id: str
    seed: int
    room_index: int
    frame_index: int
    width: int
    height: int
    furniture: int

    @property
    def origin(self) -> str:
        """What it is made from, for messages."""
        return f"room {self.room_index} of seed {self.seed}, frame {self.frame_index}"


def scan(root: Path, options: SourceOptions) -> tuple[SyntheticRef, ...]:
    """Every frame of the rooms that `root`, the text of a RoomSeries, asks for.

    Raises:
        CallError: the text is malformed, or a depth scale was given.
    """
    series = parse_series(root, options, NAME)
    return tuple(
        SyntheticRef(
            scene_id=scene_name(series, room_index),
            frame_id=f"{frame_index:04d}",
            seed=series.seed,
            room_index=room_index,
            frame_index=frame_index,
            width=series.width,
            height=series.height,
            furniture=series.furniture,
        )
        for room_index in range(series.first, series.first + series.rooms)
        for frame_index in range(series.frames)
    )


def read(ref: SyntheticRef) -> Frame:
    """Make one frame."""
    view = make_view(ref.seed, ref.room_index, ref.frame_index, ref.width, ref.height, furniture=ref.furniture)
    return frame_of_view(view, NAME, ref.scene_id, ref.frame_id)


def label_names(root: Path) -> tuple[str, ...]:
    """Class names by id, the same for all rooms."""
    return LABEL_NAMES


def scene_name(series: RoomSeries, room_index: int) -> str:
    """The name of a room: unique among all series."""
    resized = "" if series.furniture == 100 else f"-{series.furniture}"
    return f"room-{series.seed}-{room_index:05d}{resized}"


def parse_series(root: Path, options: SourceOptions, format_name: str, default_frames: int = 8) -> RoomSeries:
    """Read the text that stands where other formats have a folder.

    Args:
        root: the text, which the command line has taken for a path.
        options: must not ask for a depth scale.
        format_name: for messages.
        default_frames: frames of each room.

    Raises:
        CallError: the text is malformed, or a depth scale was given.
    """
    text = str(root)
    names = [field.name for field in dataclasses.fields(RoomSeries)]
    wanted = f"wanted a text such as seed=1,rooms=20 with any of {', '.join(names)}"
    if options.depth_scale is not None:
        raise CallError(f"{format_name}: depth is made in millimetres, so --depth-scale has no meaning; leave it out")
    values = {"frames": default_frames}
    given: set[str] = set()
    for item in text.split(","):
        name, equals, number = item.partition("=")
        if not equals or name not in names:
            close = difflib.get_close_matches(name, names, n=1) if equals else []
            hint = f", did you mean {close[0]}?" if close else ""
            raise CallError(f"{format_name} {text!r}: found {item!r}{hint}; {wanted}")
        if name in given:
            raise CallError(f"{format_name} {text!r}: {name} is given twice; {wanted}")
        given.add(name)
        least, most = _LEAST.get(name, 0), _MOST[name]
        if not (number.isascii() and number.isdecimal()) or not least <= int(number) <= most:
            raise CallError(f"{format_name} {text!r}: {name} is {number!r}, wanted a whole number, {least} to {most}")
        values[name] = int(number)
    if missing := [name for name in _REQUIRED if name not in given]:
        raise CallError(f"{format_name} {text!r}: {missing[0]} is missing; {wanted}")
    series = RoomSeries(**values)
    if series.first + series.rooms - 1 > MAX_NUMBER:
        raise CallError(f"{format_name} {text!r}: the last room is beyond {MAX_NUMBER}; take a smaller first")
    return series
