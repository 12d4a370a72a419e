"""What a person asks of a dataset: scenes, sizes, poses, depth, labels. A few samples tell, spread over all of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shards.errors import ShardError
from shards.images import BrokenImageError, decode_color
from shards.reader import DatasetReader, spread
from shards.schema import decode_frame_depth, size_of_camera
from shards.stores.store import MissingObjectError, StoreError

NUM_LOOKS = 8  # samples that are read
MAX_INDEXES = 64  # shards whose keys are read to count scenes
DEPTH_PIXELS = 20_000  # of each depth image, spread over it
QUANTILES = (0.05, 0.5, 0.95)
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
        reading_share: share of pixels with a reading.
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
            told["poses"] = _share(self.pose_share)
        told["labels"] = _share(self.label_share)
        unread = f"; others could not be read: {self.problem}" if self.problem else ""
        return told | {"seen in": f"{self.num_looks} samples, spread over the dataset{unread}"}


def summarise(dataset: DatasetReader) -> Summary:
    """Read a few samples, and the keys of the first shards.

    Raises:
        StoreError: storage refused or failed.
        ShardError: the index of a shard is damaged.
    """
    num_indexes = min(MAX_INDEXES, dataset.manifest.num_shards)
    scenes = {key.partition("/")[0] for shard in range(num_indexes) for key in dataset.index(shard).keys}
    color_sizes: dict[str, None] = {}
    depth_sizes: dict[str, None] = {}
    poses, labels, readings, shares, points, problem = [], [], [], [], [], ""
    for where in spread(dataset.samples_per_shard, NUM_LOOKS):
        try:
            if dataset.manifest.sample_kind == "scenes":
                scene = dataset.read_scene(*where)
                points.append(len(scene.points))
                labels.append(scene.semantic is not None)
                continue
            frame = dataset.read_frame(*where)
            key = f"{dataset.url}, sample {dataset.key(*where)}"
            color = decode_color(frame.color, frame.color_format, size_of_camera("color", frame.K_color, key))
            depth = decode_frame_depth(frame, key) / np.float32(frame.depth_scale)
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
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _mean(values: list[bool] | list[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _share(share: float) -> str:
    return {0.0: "none", 1.0: "all"}.get(share, f"{share:.0%}")
