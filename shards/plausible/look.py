"""A look at a few samples of a dataset, raw or packed, before anything is made of it: the proof as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from shards.checks import check_sample_headers
from shards.errors import ShardError
from shards.packing.frame_tasks import FrameTask
from shards.packing.selection import spread
from shards.plausible.facts import View, cloud_of, view_of
from shards.plausible.verdicts import VERDICTS, Finding, Verdict, judge_cloud, judge_views
from shards.reader import DatasetReader
from shards.sample import Sample
from shards.scene import Scene
from shards.sources.formats import SourceFormat
from shards.stores.store import MissingObjectError, StoreError

NUM_SCENES = 20  # that are looked at, spread over the dataset
NUM_CLOUDS = 4  # of whole scenes, which are large
# Frames of a scene: two stretches of it, each with steps from a neighbour to a second of video.
_FEW_FRAMES = 8
_STEPS = (0, 1, 4, 12)
_STARTS = (0.2, 0.6)
_MOST_SHARDS = 64  # of a packed dataset, whose keys are read


@dataclass(frozen=True)
class Row:
    """A line of the proof: what was found in some scenes alike.

    Attributes:
        finding: of the first of them.
        scenes: their ids.
    """

    finding: Finding
    scenes: tuple[str, ...]


@dataclass(frozen=True)
class Proof:
    """What the look found.

    Attributes:
        rows: the worst first.
        num_scenes: that were looked at.
        num_samples: that were read.
        unread: why the last of those that could not be read could not; "" if all could.
    """

    rows: tuple[Row, ...]
    num_scenes: int
    num_samples: int
    unread: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst that was found; fine if something was, and nothing is wrong."""
        found = {row.finding.verdict for row in self.rows}
        order: tuple[Verdict, ...] = ("cannot be right", "suspicious", "fine")
        return next((verdict for verdict in order if verdict in found), "cannot be known")

    def of(self, *verdicts: Verdict) -> tuple[Row, ...]:
        """The rows with these verdicts."""
        return tuple(row for row in self.rows if row.finding.verdict in verdicts)

    def text(self, rows: Sequence[Row]) -> str:
        """Some of its rows for people, a few lines each."""
        lines = []
        for row in rows:
            where = f"{row.scenes[0]}" if len(row.scenes) == 1 else f"{len(row.scenes)} of {self.num_scenes} scenes"
            found = row.finding
            lines.append(f"{found.verdict:15}  {found.what:8} {found.found} ({where})")
            if found.cause:
                lines.append(f"{'':17}likely: {found.cause}")
            if found.mend:
                lines.append(f"{'':17}mends it: {found.mend}")
        return "\n".join(lines)


def places(num_frames: int) -> list[int]:
    """Positions of the frames of a scene that are looked at; not more of a longer one."""
    if num_frames <= _FEW_FRAMES:
        return list(range(num_frames))
    starts = [int(share * num_frames) for share in _STARTS]
    return sorted({min(start + gap, num_frames - 1) for start in starts for gap in _STEPS})


def look_at_source(chosen: SourceFormat, tasks: Sequence[FrameTask], label_names: Sequence[str]) -> Proof:
    """A look at raw data that is about to be packed."""
    scenes: dict[str, list[FrameTask]] = {}
    for task in tasks:
        scenes.setdefault(task.ref.scene_id, []).append(task)

    def read(task: FrameTask) -> tuple[str, Sample]:
        return task.key, chosen.read(task.ref)

    return _look(list(scenes.items()), read, chosen.sample_kind == "scenes", label_names, chosen.up_axis)


def look_at_dataset(dataset: DatasetReader) -> Proof:
    """A look at a packed dataset.

    Raises:
        StoreError: storage refused or failed.
        ShardError: the index of a shard is damaged.
    """
    scenes: dict[str, list[tuple[int, int]]] = {}
    for shard in spread(range(dataset.manifest.num_shards), _MOST_SHARDS):
        for i, key in enumerate(dataset.index(shard).keys):
            scenes.setdefault(key.partition("/")[0], []).append((shard, i))
    manifest = dataset.manifest
    is_scenes = manifest.sample_kind == "scenes"

    def read(place: tuple[int, int]) -> tuple[str, Sample]:
        return dataset.read_keyed(*place)

    return _look(list(scenes.items()), read, is_scenes, manifest.label_names, manifest.up_axis)


def require_plausible(proof: Proof, source: str, as_is: bool, on_look: Callable[[Proof], None] | None) -> None:
    """Raise ShardError where something cannot be right, unless it is taken as it is; else tell what was found."""
    if on_look is not None and (as_is or proof.verdict != "cannot be right"):
        on_look(proof)
    if rows := () if as_is else proof.of("cannot be right"):
        raise ShardError(
            f"{source}: a look at {proof.num_samples} samples of {proof.num_scenes} scenes found what cannot be right; "
            f"nothing was packed. Mend it, or pack it all the same with --as-is\n{proof.text(rows)}"
        )


def _look(
    scenes: Sequence[tuple[str, Sequence[Any]]],
    read: Callable[[Any], tuple[str, Sample]],
    is_clouds: bool,
    label_names: Sequence[str],
    up_axis: str | None,
) -> Proof:
    found: list[tuple[str, Finding]] = []
    num_samples, unread = 0, ""
    chosen = spread(range(len(scenes)), NUM_CLOUDS if is_clouds else NUM_SCENES)
    for scene_id, samples in (scenes[place] for place in chosen):
        views: list[View] = []
        for place in places(len(samples)):
            try:
                key, sample = read(samples[place])
                check_sample_headers(sample, key)
                if isinstance(sample, Scene):
                    found += [(scene_id, finding) for finding in judge_cloud(cloud_of(sample, key), label_names)]
                else:
                    views.append(view_of(sample, key, place))
                num_samples += 1
            except StoreError as error:
                if not isinstance(error, MissingObjectError):
                    raise
                unread = str(error)
            except ShardError as error:  # packing and verifying say more of it
                unread = str(error)
        if views:
            found += [(scene_id, finding) for finding in judge_views(views, label_names, up_axis)]
    return Proof(_rows(found), len(chosen), num_samples, unread)


def _rows(found: Sequence[tuple[str, Finding]]) -> tuple[Row, ...]:
    """One row for what is alike: the same thing, with the same verdict and cause."""

    def kind(item: tuple[str, Finding]) -> tuple[int, str, str]:
        finding = item[1]
        return VERDICTS.index(finding.verdict), finding.what, finding.cause

    alike = (list(items) for _, items in groupby(sorted(found, key=kind), key=kind))
    return tuple(Row(items[0][1], tuple(dict.fromkeys(scene for scene, _ in items))) for items in alike)
