"""What a person asks of a dataset: scenes, sizes, poses, depth, labels. A few samples tell, spread over all of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.images import BrokenImageError, decode_color, decode_labels
from shards.reader import DatasetReader, spread
from shards.schema import decode_frame_depth, size_of_camera
from shards.stores.store import MissingObjectError, StoreError

NUM_LOOKS = 8  # samples that are read
MAX_INDEXES = 64  # shards whose keys are read to count scenes
DEPTH_PIXELS = 20_000  # of each depth image, spread over it
QUANTILES = (0.05, 0.5, 0.95)
DEPTH_EDGES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, math.inf)  # metres, between the shares of depth
_MOST_TOLD = 8  # labels, in a line
USUAL_MEDIAN = (0.3, 8.0)  # metres; indoors nothing is outside, and a scale that is wrong by ten nearly always


@dataclass(frozen=True)
class Summary:
    """What was seen.

    Attributes:
        num_looks: samples that were read; those that could not be are not among them.
        problem: why the last one could not be read; "" if all could.
        num_scenes: scenes; of a dataset with many shards those of the first ones.
        scenes_are_all: every shard was asked.
        color_sizes, depth_sizes: "WIDTHxHEIGHT" that occur; of frames.
        pose_share: share of frames with a pose.
        label_share: share of samples with semantic labels.
        depth: metres below which 5, 50 and 95 % of the readings lie; None without one, and of whole scenes.
        depth_shares: share of the readings between one of DEPTH_EDGES and the next; empty without depth.
        reading_share: share of pixels with a reading.
        label_shares: share of each label among what has one, the most frequent first.
        instances: of a sample, the median; None where no sample has any.
        sources: the raw formats that samples came from.
        points: points of a scene, the median; None of frames.
    """

    num_looks: int
    problem: str
    num_scenes: int
    scenes_are_all: bool
    color_sizes: tuple[str, ...]
    depth_sizes: tuple[str, ...]
    pose_share: float
    label_share: float
    depth: tuple[float, float, float] | None
    reading_share: float
    points: int | None
    depth_shares: tuple[float, ...]
    label_shares: tuple[tuple[str, float], ...]
    instances: int | None
    sources: tuple[str, ...]

    def lines(self) -> dict[str, str]:
        """The same in words, by name."""
        at_least = "" if self.scenes_are_all else f"at least, in the first {MAX_INDEXES} shards"
        told = {"scenes": f"{self.num_scenes} {at_least}".strip()}
        if not self.num_looks:
            return told | {"look": f"no sample could be read: {self.problem}"}
        if self.points is not None:
            told["points"] = f"{self.points:,} of a scene (median)"
        else:
            told["color"] = ", ".join(self.color_sizes)
            told["depth"] = ", ".join(self.depth_sizes) + f", {self.reading_share:.0%} of the pixels have a reading"
            if self.depth is not None:
                near, middle, far = self.depth
                told["depth range"] = f"{near:.2f} to {far:.2f} m (5 to 95 %), median {middle:.2f} m"
                if not USUAL_MEDIAN[0] < middle < USUAL_MEDIAN[1]:
                    told["depth range"] += "; rooms have a median of 1 to 4 m: is --depth-scale right?"
            if self.depth_shares:
                told["depth shares"] = ", ".join(
                    f"{name} {share:.0%}" for name, share in zip(DEPTH_BINS, self.depth_shares, strict=True) if share
                )
            told["poses"] = _share(self.pose_share)
        told["labels"] = _share(self.label_share)
        if self.label_shares:
            told["label shares"] = ", ".join(f"{name} {share:.0%}" for name, share in self.label_shares[:_MOST_TOLD])
            if (rest := len(self.label_shares) - _MOST_TOLD) > 0:
                told["label shares"] += f" and {rest} more"
        if self.instances is not None:
            told["instances"] = f"{self.instances} of a sample (median)"
        told["sources"] = ", ".join(self.sources)
        unread = f"; others could not be read: {self.problem}" if self.problem else ""
        return told | {"seen in": f"{self.num_looks} samples, spread over the dataset{unread}"}


def _bins() -> tuple[str, ...]:
    """Names of the shares of depth."""
    return tuple(
        f"below {high:g} m" if not low else f"above {low:g} m" if math.isinf(high) else f"{low:g} to {high:g} m"
        for low, high in pairwise(DEPTH_EDGES)
    )


DEPTH_BINS = _bins()


def summarise(dataset: DatasetReader, num_looks: int = NUM_LOOKS) -> Summary:
    """Read a few samples, and the keys of the first shards.

    Args:
        num_looks: samples that are read, at most.

    Raises:
        StoreError: storage refused or failed.
        ShardError: the index of a shard is damaged.
    """
    num_indexes = min(MAX_INDEXES, dataset.manifest.num_shards)
    scenes = {key.partition("/")[0] for shard in range(num_indexes) for key in dataset.index(shard).keys}
    color_sizes: dict[str, None] = {}
    depth_sizes: dict[str, None] = {}
    poses, labels, readings, shares, points, problem = [], [], [], [], [], ""
    labelled, instances, sources = Counter[int](), list[int](), dict[str, None]()
    for where in spread(dataset.samples_per_shard, num_looks):
        try:
            if dataset.manifest.sample_kind == "scenes":
                scene = dataset.read_scene(*where)
                points.append(len(scene.points))
                labels.append(scene.semantic is not None)
                sources[scene.dataset] = None
                _count(labelled, scene.semantic)
                _count_instances(instances, scene.instance)
                continue
            frame = dataset.read_frame(*where)
            key = f"{dataset.url}, sample {dataset.key(*where)}"
            color = decode_color(frame.color, frame.color_format, size_of_camera("color", frame.K_color, key))
            depth = decode_frame_depth(frame, key) / np.float32(frame.depth_scale)
            semantic, instance = (
                None if data is None else decode_labels(data) for data in (frame.semantic, frame.instance)
            )
        except BrokenImageError as error:
            problem = f"{key}: {error}"
            continue
        except MissingObjectError as error:
            problem = str(error)
            continue
        except StoreError:  # says nothing of the data, and the next sample would take as long to fail
            raise
        except ShardError as error:
            problem = str(error)
            continue
        color_sizes[_size(color.shape)] = depth_sizes[_size(depth.shape)] = None
        poses.append(frame.world_from_camera is not None)
        labels.append(frame.semantic is not None)
        sources[frame.dataset] = None
        _count(labelled, semantic)
        _count_instances(instances, instance)
        shares.append(float((depth > 0).mean()))
        some = depth.ravel()[:: max(1, depth.size // DEPTH_PIXELS)]
        readings.append(some[some > 0])
    found = np.concatenate(readings) if readings else np.empty(0)
    near_middle_far = [float(value) for value in np.quantile(found, QUANTILES)] if len(found) else None
    return Summary(
        num_looks=len(labels),
        problem=problem,
        num_scenes=len(scenes),
        scenes_are_all=num_indexes == dataset.manifest.num_shards,
        color_sizes=tuple(color_sizes),
        depth_sizes=tuple(depth_sizes),
        pose_share=_mean(poses),
        label_share=_mean(labels),
        depth=None if near_middle_far is None else (near_middle_far[0], near_middle_far[1], near_middle_far[2]),
        reading_share=_mean(shares),
        points=int(np.median(points)) if points else None,
        depth_shares=tuple((np.histogram(found, DEPTH_EDGES)[0] / len(found)).tolist()) if len(found) else (),
        label_shares=_shares_of(labelled, dataset.manifest.label_names),
        instances=int(np.median(instances)) if instances else None,
        sources=tuple(sources),
    )


def _count(labelled: Counter[int], ids: NDArray[np.integer] | None) -> None:
    """Add the labels of a sample; 0 counts as none, as it does in every format that is read."""
    if ids is not None:
        found, counts = np.unique(ids, return_counts=True)
        labelled.update({int(one): int(count) for one, count in zip(found, counts, strict=True) if one})


def _count_instances(instances: list[int], ids: NDArray[np.integer] | None) -> None:
    if ids is not None:
        instances.append(int(np.count_nonzero(np.unique(ids))))


def _shares_of(labelled: Counter[int], names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    total = labelled.total()
    return tuple(
        (names[label] if label < len(names) else f"id {label}, without a name", count / total)
        for label, count in labelled.most_common()
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _mean(values: list[bool] | list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _share(share: float) -> str:
    return {0.0: "none", 1.0: "all"}.get(share, f"{share:.0%}")
