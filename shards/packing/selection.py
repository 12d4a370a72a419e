"""Which frames of a source are packed: by the options of its reader, by position, and so many of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import CallError
from shards.packing.frame_tasks import FrameTask, unique_tasks
from shards.sources.formats import FrameRef, SourceFormat
from shards.sources.options import SourceOptions


@dataclass(frozen=True)
class Selection:
    """Some of a source's frames.

    Attributes:
        frames: by position in the source; None takes all.
        every: of these, one of so many.
        max_frames: of these, at most so many of each scene, spread over it; None takes all.
    """

    frames: slice | None = None
    every: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise CallError(f"every and max frames must be at least 1, found {self.every} and {self.max_frames}")

    def of(self, refs: Sequence[FrameRef]) -> list[FrameRef]:
        """Those of them, in their order."""
        kept = list(refs[self.frames or slice(None)][:: self.every])
        if self.max_frames is None:
            return kept
        places: dict[str, list[int]] = {}
        for place, ref in enumerate(kept):
            places.setdefault(ref.scene_id, []).append(place)
        chosen = sorted(place for scene in places.values() for place in spread(scene, self.max_frames))
        return [kept[place] for place in chosen]

    def __str__(self) -> str:
        """As on the command line."""
        ends = (None, None) if self.frames is None else (self.frames.start, self.frames.stop)
        spelt = ":".join("" if end is None else str(end) for end in ends)
        return f"--frames {spelt} and --every {self.every}"


def spread(items: Sequence[int], most: int) -> list[int]:
    """At most so many of some items, the first and then in even steps."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def find_tasks(chosen: SourceFormat, root: Path, told: SourceOptions, selection: Selection) -> list[FrameTask]:
    """The samples that are to be packed.

    Raises:
        CallError: the format has no use for an option, or nothing is left.
        ShardError: the source is damaged, or two frames have the same key.
    """
    if useless := [name for name in told.said() if name not in chosen.takes]:
        takes = ", ".join(option_name(name) for name in chosen.takes) or "none of these options"
        raise CallError(f"format {chosen.name} has no use for {', '.join(map(option_name, useless))}; it takes {takes}")
    refs = chosen.scan(root, told)
    selected = selection.of(refs)
    if not selected:
        raise CallError(f"{root}: none of its {len(refs)} frames is left by {selection}")
    return unique_tasks(selected)


def option_name(field: str) -> str:
    """A field of the options as it is typed on the command line."""
    return f"--{field.replace('_', '-')}"
