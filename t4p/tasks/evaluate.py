"""Scores of an exported network on labelled data: zero-shot after pre-training, its head's after fine-tuning.

Nothing of CLIP is needed: the embeddings of the labels are in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from t4p.config.data import EvaluatedDataConfig
from t4p.config.kinds import task_named
from t4p.config.tasks import EvaluateConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledBatch, build_label_recipe
from t4p.data.labels import IGNORED
from t4p.data.read_ahead import plan_read_ahead
from t4p.data.stream import Recipe, ValidationStream
from t4p.errors import DataError
from t4p.metrics.semantic import SemanticScores, confusion, scores
from t4p.models.exported import ExportedNetwork, load_exported_network
from t4p.models.score_map import VoxelScores
from t4p.tasks.scored import ScoreSheet

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


@dataclass(frozen=True, eq=False)
class ScoredSample:
    """What a network says of the voxels of one frame or scene, for whoever wants to look at it.

    Attributes:
        key: key of the stored sample.
        position: place among all samples, from 0.
        num_samples: of all datasets.
        points: (V, 3) float32 middles of the voxels, metres, z up, from the corner of the sample.
        predicted: (V,) int64 indices of the network's labels.
        truth: (V,) int64, likewise, or IGNORED.
    """

    key: str
    position: int
    num_samples: int
    points: NDArray[np.float32]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]


def evaluate(
    config: EvaluateConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
) -> tuple[ExportedNetwork, SemanticScores | ScoreSheet]:
    """Score an exported network by the protocol of its task, on every sample of the datasets.

    Args:
        on_progress: called with (samples done, samples in all).
        on_sample: told what was said of each sample, where the network gives every voxel a label.

    Returns:
        The network as read, and its scores; class ids are the rows of its labels.

    Raises:
        CheckpointError: the file is no export, or is damaged.
        ConfigError, ShardError, DataError: as `score_network`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exported = load_exported_network(Path(config.model.exported), device)
    task = task_named(exported.config.task)
    if task.finds != "labels":
        return exported, task.load().score(exported, config.data, on_progress)
    return exported, score_network(exported, config.data, on_progress, on_sample)


def score_network(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
) -> SemanticScores:
    """Score a network on every point of the datasets.

    Of a frame: the readings that `pixel_stride` and `max_depth` leave and that the colour camera sees.

    Args:
        on_progress, on_sample: as for `evaluate`.

    Raises:
        ConfigError: the classes of a dataset are not its labels.
        ShardError, DataError: the data is missing or damaged, or holds no labelled point.
    """
    return score_points(label_points(exported, scored, on_progress, on_sample), len(exported.labels), scored.shards)


def score_points(
    samples: Iterable[tuple[ArrayLike, ArrayLike]], num_labels: int, urls: Sequence[str]
) -> SemanticScores:
    """Read the scores off all samples.

    Args:
        samples: for each, what was said of its points and what is true: indices of labels, the truth may be IGNORED.
        urls: places of the datasets, for messages.

    Raises:
        DataError: not one point has a label.
    """
    class_ids = range(num_labels)
    counts = confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), class_ids)
    for predicted, target in samples:
        counts += confusion(predicted, target, class_ids, (IGNORED,))
    if not counts.sum():
        raise DataError(
            f"{', '.join(urls)}: not one of the points has a label; look at a sample with `t4p shards show`"
        )
    return scores(counts, class_ids)


def label_points(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a network says of every point, and what is true: sample by sample, in the order of the datasets.

    Yields:
        Two (N,) int64 of indices of its labels; the truth may be IGNORED. Of a scene, in the order of its points.

    Raises:
        ConfigError, ShardError, DataError: as `score_network`.
    """
    catalogue = Catalogue(scored.shards)
    points = {"pixel_stride": scored.pixel_stride, "max_depth": scored.max_depth}
    data, model = exported.config.data.model_copy(update=points), exported.config.model
    recipe = build_label_recipe(catalogue, data, model, exported.labels, scored.ignored_labels, augment=None)
    batches = scored_stream(scored, catalogue, recipe).batches()
    for done, batch in enumerate(batches, start=1):
        predicted = predict(exported, batch)
        if on_sample is not None:
            middles = (batch.voxel_coords[:, 1:].numpy().astype(np.float32) + 0.5) * np.float32(model.voxel_size)
            truth = batch.label_of_voxel.numpy()
            on_sample(ScoredSample(batch.keys[0], done - 1, catalogue.num_samples, middles, predicted.numpy(), truth))
        yield predicted[batch.voxel_of_point], batch.label_of_point
        on_progress(done, catalogue.num_samples)


def scored_stream(
    scored: EvaluatedDataConfig, catalogue: Catalogue, recipe: Recipe[Sample, Batch]
) -> ValidationStream[Sample, Batch]:
    """Every sample of a catalogue once, read ahead where it lies in object storage."""
    say = partial(print, file=sys.stderr, flush=True)  # standard output is for the scores
    ahead = plan_read_ahead(catalogue, scored.cache_dir, scored.cache_bytes, uuid4().hex, say)
    return ValidationStream(catalogue, recipe, scored.num_workers, read_ahead=ahead)


def predict(exported: ExportedNetwork, batch: LabelledBatch) -> Tensor:
    """The label of every voxel: (V,) int64 on the CPU, that of the largest of `voxel_scores`."""
    voxels = (batch.voxel_coords, batch.voxel_features, batch.bottleneck_of_voxel)
    return voxel_scores(exported, *voxels).scores.argmax(dim=1).cpu()


def voxel_scores(
    exported: ExportedNetwork, voxel_coords: Tensor, voxel_features: Tensor, bottleneck_of_voxel: Tensor
) -> VoxelScores:
    """What a network says of every voxel for every one of its labels, on the network's device.

    Args:
        voxel_coords, voxel_features, bottleneck_of_voxel: (V, 4) int32, (V, C_in) and (V,), as in LabelledBatch.
    """
    device = exported.label_embeddings.device
    voxels = (tensor.to(device) for tensor in (voxel_coords, voxel_features, bottleneck_of_voxel))
    return task_named(exported.config.task).load().voxel_scores(exported, *voxels)
