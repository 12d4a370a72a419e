"""What a person may say about raw data besides where it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from shards.errors import CallError

LabelsFrom = Literal["depth", "color"]
LEAST_CONFIDENCE = 2  # of 0, 1, 2, as phones grade their depth: the best alone, which a network should learn from


@dataclass(frozen=True)
class SourceOptions:
    """What a reader is told.

    Attributes:
        depth_scale: depth units per metre; None takes the format's own.
        intrinsics: file with the K of every image, over what the source says; as `read_camera` reads it.
        scenes: pattern (`scene00*`) of the scenes to take, by scene id; None takes all.
        split: file of the ids of the scenes to take, one a line; None takes all.
        pose_scale: metres of a unit of poses that have no metric scale of their own.
        only_complete: leave out frames without colour or depth, instead of refusing them.
        labels_from: image whose pixels the label images of the folder format count; those of colour are looked up for
            every pixel of depth.
        min_confidence: of depth that comes with one, 0 to 2: what has less is no reading.
    """

    depth_scale: float | None = None
    intrinsics: Path | None = None
    scenes: str | None = None
    split: Path | None = None
    pose_scale: float | None = None
    only_complete: bool = False
    labels_from: LabelsFrom = "depth"
    min_confidence: int = LEAST_CONFIDENCE

    def __post_init__(self) -> None:
        if self.depth_scale is not None and not self.depth_scale > 0:
            raise CallError(f"depth scale is {self.depth_scale}, wanted units per metre, above 0")
        if self.pose_scale is not None and not self.pose_scale > 0:
            raise CallError(f"pose scale is {self.pose_scale}, wanted metres a unit, above 0")
        if not 0 <= self.min_confidence <= 2:
            raise CallError(f"--min-confidence is {self.min_confidence}, wanted 0, 1 or 2 (2 takes the surest alone)")

    def said(self) -> dict[str, object]:
        """What is not as by default, as a manifest notes it: files by their names."""
        values = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return {
            name: value.name if isinstance(value, Path) else value for name, value, usual in values if value != usual
        }

    def chosen_scenes(self) -> ChosenScenes:
        """Which scenes are asked for.

        Raises:
            ShardError: the file of the split cannot be read.
        """
        from shards.sources.raw_text import content_lines, read_text

        names = None
        if self.split is not None:
            names = frozenset(line for _, line in content_lines(read_text(self.split)))
        return ChosenScenes(self.scenes, names)


@dataclass(frozen=True)
class ChosenScenes:
    """Scenes by pattern and by list; both must fit."""

    pattern: str | None
    names: frozenset[str] | None

    def __contains__(self, scene_id: str) -> bool:
        return (self.pattern is None or fnmatchcase(scene_id, self.pattern)) and (
            self.names is None or scene_id in self.names
        )
