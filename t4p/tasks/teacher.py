"""What the frozen image tower itself makes of labelled frames: the ceiling of what points can learn from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.sample import Sample as StoredSample
from shards.schema import Frame, ShardError
from t4p.config import EvaluatedDataConfig, PretrainConfig
from t4p.data.decode import decode_frame
from t4p.data.fetch import Catalogue
from t4p.data.labelled import decode_frame_labels
from t4p.data.labels import LabelTable, build_label_table
from t4p.data.stream import ValidationStream
from t4p.data.transforms import IGNORED, lift_frame
from t4p.errors import DataError
from t4p.metrics.semantic import SemanticScores, confusion, scores
from t4p.tasks.pretrain import load_towers_from


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """One frame as the image tower sees it.

    Attributes:
        image: (H, W, 3) uint8.
        pixel_of_point: (N, 2) int64, (row, col) in `image`.
        label_of_point: (N,) int64 index of the labels, or IGNORED.
    """

    image: NDArray[np.uint8]
    pixel_of_point: NDArray[np.int64]
    label_of_point: NDArray[np.int64]


@dataclass(frozen=True)
class SeenRecipe:
    """Stored frames to images with labelled points: see `t4p.data.stream.Recipe`.

    Attributes:
        tables: what the class ids of each dataset of the catalogue mean.
        image_size: (height, width) that the tower sees.
        pixel_stride: every k-th row and column of a depth image is lifted.
        max_depth: metres; readings beyond are dropped.
    """

    tables: tuple[LabelTable, ...]
    image_size: tuple[int, int]
    pixel_stride: int
    max_depth: float

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> SeenFrame:
        """Find the points of one frame, each with its pixel and its label."""
        if not isinstance(stored, Frame):
            raise ShardError(f"sample {key}: is a scene, and an image tower needs RGB-D frames")
        decoded = decode_frame(stored)
        points = lift_frame(decoded, self.image_size, self.pixel_stride, self.max_depth, in_world=False)
        ids = decode_frame_labels(stored, decoded)[tuple(points.depth_pixel_of_point.T)]
        return SeenFrame(points.image, points.pixel_of_point, self.tables[dataset_index].look_up(ids))

    def join(self, samples: Sequence[SeenFrame]) -> Sequence[SeenFrame]:
        """As they are."""
        return samples


def score_teacher(
    config: PretrainConfig,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SemanticScores:
    """Score the image tower of a pre-training on the points that `score_network` scores its 3D network on.

    Every point has the label whose text embedding is nearest at its pixel (the reading of MaskCLIP).

    Args:
        config: names the towers, the size of image they see, the labels and the template.
        scored: frames with labels.
        on_progress: called with (frames done, frames in all).

    Returns:
        Scores whose class ids are the rows of the labels.

    Raises:
        ConfigError: the classes of a dataset are not the labels.
        ClipError: the towers cannot be had.
        CallError: a dataset holds no frames.
        ShardError, DataError: the data is missing or damaged, or holds no labelled point.
    """
    model = config.model
    assert isinstance(model.labels, tuple)  # the loader has read the file
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers = load_towers_from(model.clip, config.run.seed).to(device)
    text = towers.encode_labels(model.labels, model.text_query.template).to(device)
    catalogue = Catalogue(scored.shards)
    catalogue.require_frames()
    tables = (
        build_label_table(names, model.labels, scored.ignored_labels, url)
        for names, url in zip(catalogue.label_names, catalogue.urls, strict=True)
    )
    recipe = SeenRecipe(tuple(tables), config.data.image_size, scored.pixel_stride, scored.max_depth)
    class_ids = range(len(model.labels))
    counts = confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), class_ids)
    batches = ValidationStream(catalogue, recipe, scored.num_workers, 0, 1).batches()
    for done, (frame,) in enumerate(batches, start=1):
        image = torch.from_numpy(np.array(frame.image)[None]).to(device)
        predicted = towers.nearest_labels(image, text)[0].cpu().numpy()[tuple(frame.pixel_of_point.T)]
        counts += confusion(predicted, frame.label_of_point, class_ids, (IGNORED,))
        on_progress(done, catalogue.num_samples)
    if not counts.sum():
        raise DataError(
            f"{', '.join(scored.shards)}: not one of the points has a label; look at a sample with `t4p shards show`"
        )
    return scores(counts, class_ids)
