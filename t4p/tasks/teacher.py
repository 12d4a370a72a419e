"""What the frozen image tower itself makes of labelled frames: the ceiling of what points can learn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shards.sample import Sample as StoredSample
from shards.schema import Frame
from t4p.config.data import EvaluatedDataConfig
from t4p.config.tasks import PretrainConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledFrame, build_label_tables, lift_labelled
from t4p.data.labels import LabelTable
from t4p.metrics.semantic import SemanticScores
from t4p.models.towers import load_towers_from
from t4p.tasks.evaluate import score_points, scored_stream


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

    def make(self, stored: StoredSample, dataset_index: int, key: str, epoch: int) -> LabelledFrame:
        """Find the points of one frame, each with its pixel and its label."""
        assert isinstance(stored, Frame)  # score_teacher has refused datasets of scenes
        table = self.tables[dataset_index]
        return lift_labelled(stored, table, self.pixel_stride, self.max_depth, False, self.image_size)

    def join(self, samples: Sequence[LabelledFrame]) -> Sequence[LabelledFrame]:
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers = load_towers_from(model.clip, config.run.seed).to(device)
    text = towers.encode_synonyms(model.label_words, model.text_query.template).to(device)
    catalogue = Catalogue(scored.shards)
    catalogue.require_frames()
    recipe = SeenRecipe(
        tables=build_label_tables(catalogue, model.label_names, scored.ignored_labels),
        image_size=config.data.image_size,
        pixel_stride=scored.pixel_stride,
        max_depth=scored.max_depth,
    )

    def samples() -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        batches = scored_stream(scored, catalogue, recipe).batches()
        for done, (frame,) in enumerate(batches, start=1):
            image = torch.from_numpy(np.array(frame.image)[None]).to(device)
            labels = towers.nearest_labels(image, text)[0].cpu().numpy()
            yield labels[tuple(frame.pixel_of_point.numpy().T)], frame.label_of_point.numpy()
            on_progress(done, catalogue.num_samples)

    return score_points(samples(), len(model.label_names), scored.shards)
