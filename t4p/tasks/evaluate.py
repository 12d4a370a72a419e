"""Scores of an exported network on labelled data: zero-shot after pre-training, its head's after fine-tuning.

Nothing of CLIP is needed: the embeddings of the labels are in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from t4p.config.data import EvaluatedDataConfig
from t4p.config.kinds import task_named
from t4p.config.tasks import EvaluateConfig, JobConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledBatch, LabelRecipe, build_label_recipe
from t4p.data.labels import IGNORED
from t4p.data.read_ahead import plan_read_ahead
from t4p.data.stream import Recipe, ValidationStream
from t4p.errors import ConfigError, DataError
from t4p.metrics.semantic import SemanticScores, confusion, scores
from t4p.models.exported import ExportedNetwork, load_exported_network
from t4p.models.hub import fetched
from t4p.models.score_map import VoxelScores
from t4p.tasks.scored import ScoredSample, ScoreSheet
from t4p.tasks.submission import Submission, write_submission

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")
Scored = TypeVar("Scored", bound=JobConfig)


def evaluate(
    config: EvaluateConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
    submission: Path | None = None,
) -> tuple[ExportedNetwork, SemanticScores | ScoreSheet]:
    """Score an exported network by the protocol of its task, on every sample of the datasets.

    Args:
        on_progress: called with (samples done, samples in all).
        on_sample: told what was said of each sample.
        submission: folder that becomes the predictions in ScanNet's layout. Without a label in the data, as in a test
            split, the scores are nan then.

    Returns:
        The network as read, and its scores; class ids are the rows of its labels.

    Raises:
        CheckpointError: the file is no export, or is damaged.
        CallError, ConfigError, ResultError: as `write_submission`.
        ConfigError: `model.finds` is not what the network can find.
        ConfigError, ShardError, DataError: as `score_network`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exported = load_exported_network(fetched(config.model.exported), device)
    task = task_named(exported.config.task)
    finds = config.model.finds or task.finds
    if finds != task.finds and task.finds != "labels":
        raise ConfigError(
            f"model.finds is {config.model.finds}, and {config.model.exported} finds {task.finds} "
            f"(task: {task.name}); leave model.finds out, or name a network that labels points"
        )
    if submission is None:
        return exported, score_exported(exported, config.data, on_progress, on_sample, finds)
    with write_submission(submission, exported.labels, finds) as written:
        return exported, score_exported(exported, config.data, on_progress, on_sample, finds, written)


def score_exported(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
    finds: str | None = None,
    written: Submission | None = None,
) -> SemanticScores | ScoreSheet:
    """Score a network by the protocol of its task.

    Args:
        on_progress, on_sample: as for `evaluate`.
        finds: "masks" scores those of a network that labels points; None is what its task finds.
        written: takes the predictions, which is no boxes.

    Raises:
        ConfigError, ShardError, DataError: as `score_network`.
    """
    task = task_named(exported.config.task)
    if finds in (None, task.finds) and task.finds == "labels":
        on_labels = None if written is None else written.add_labels
        return score_network(exported, scored, on_progress, on_sample, on_labels)
    on_masks = {} if written is None else {"on_masks": written.add_masks}
    if finds in (None, task.finds):
        sheet: ScoreSheet = task.load().score(exported, scored, on_progress, on_sample, **on_masks)
        return sheet
    from t4p.tasks.named_groups import score_named_groups  # which needs this module

    return score_named_groups(exported, scored, on_progress, on_sample, **on_masks)


def score_network(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
    on_labels: Callable[[str, NDArray[np.int64]], None] | None = None,
) -> SemanticScores:
    """Score a network on every point of the datasets.

    Of a frame: the readings that `pixel_stride` and `max_depth` leave and that the colour camera sees.

    Args:
        on_progress, on_sample: as for `evaluate`.
        on_labels: called with the key of each sample and the label of each of its points. Then no point needs a true
            one, and without any the scores are nan.

    Raises:
        ConfigError: the classes of a dataset are not its labels.
        ShardError, DataError: the data is missing or damaged, or holds no labelled point.
    """
    samples = label_points(exported, scored, on_progress, on_sample, on_labels)
    return score_points(samples, len(exported.labels), scored.shards, unlabelled=on_labels is not None)


def score_points(
    samples: Iterable[tuple[ArrayLike, ArrayLike]], num_labels: int, urls: Sequence[str], *, unlabelled: bool = False
) -> SemanticScores:
    """Read the scores off all samples.

    Args:
        samples: for each, what was said of its points and what is true: indices of labels, the truth may be IGNORED.
        urls: places of the datasets, for messages.
        unlabelled: the scores are nan where no point has a label.

    Raises:
        DataError: not one point has a label.
    """
    class_ids = range(num_labels)
    counts = confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), class_ids)
    for predicted, target in samples:
        counts += confusion(predicted, target, class_ids, (IGNORED,))
    if not (counts.sum() or unlabelled):
        raise DataError(
            f"{', '.join(urls)}: not one of the points has a label; look at a sample with `t4p shards show`"
        )
    return scores(counts, class_ids)


def label_points(
    exported: ExportedNetwork,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    on_sample: Callable[[ScoredSample], None] | None = None,
    on_labels: Callable[[str, NDArray[np.int64]], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a network says of every point, and what is true: sample by sample, in the order of the datasets.

    Yields:
        Two (N,) int64 of indices of its labels; the truth may be IGNORED. Of a scene, in the order of its points.

    Raises:
        ConfigError, ShardError, DataError: as `score_network`.
    """

    def recipe(config: JobConfig, catalogue: Catalogue, _trains: bool, ignored: Sequence[str]) -> LabelRecipe:
        unlabelled = on_labels is not None
        return build_label_recipe(
            catalogue, config.data, config.model, exported.labels, ignored, augment=None, unlabelled=unlabelled
        )

    voxel_size = exported.config.model.voxel_size
    for batch in scored_batches(exported.config, scored, recipe, on_progress):
        predicted = predict(exported, batch)
        of_point = predicted[batch.voxel_of_point]
        if on_sample is not None:
            class_ids = range(len(exported.labels))
            counts = confusion(of_point.numpy(), batch.label_of_point.numpy(), class_ids, (IGNORED,))
            on_sample(
                ScoredSample(
                    key=batch.keys[0],
                    measure="mIoU",
                    score=scores(counts, class_ids).miou,
                    points=middles_of_voxels(batch.voxel_coords[:, 1:], voxel_size).cpu().numpy(),
                    predicted=predicted.numpy(),
                    truth=batch.label_of_voxel.numpy(),
                    counts=counts,
                    batch=batch,
                )
            )
        if on_labels is not None:
            on_labels(batch.keys[0], of_point.numpy())
        yield of_point, batch.label_of_point


def middles_of_voxels(voxel_coords: Tensor, voxel_size: float) -> Tensor:
    """(V, 3) float32 metres, from the corner of voxel (0, 0, 0); of (V, 3) coordinates, on their device."""
    return (voxel_coords.float() + 0.5) * voxel_size


@torch.no_grad()
def features_of_voxels(exported: ExportedNetwork, batch: LabelledBatch) -> NDArray[np.float32]:
    """(V, d) h3D_hat of the bottleneck voxel that each voxel lies in, unit-norm: what is compared with text."""
    text = exported.label_embeddings
    batch = batch.to(text.device)
    expanded, _ = exported.net(batch.voxel_coords, batch.voxel_features, text, read="bottleneck")
    return F.normalize(expanded.float(), dim=1)[batch.bottleneck_of_voxel].cpu().numpy()


def scored_batches(
    config: Scored,
    scored: EvaluatedDataConfig,
    build_recipe: Callable[[Scored, Catalogue, bool, Sequence[str]], Recipe[Sample, Batch]],
    on_progress: Callable[[int, int], None],
) -> Iterator[Batch]:
    """Every sample of the datasets that an export is scored on, one by one, read as its run read them.

    Args:
        config: of the export.
        on_progress: called with (samples done, samples in all).

    Raises:
        ConfigError: the classes of a dataset are not its labels.
        ShardError: the data is missing or damaged.
    """
    catalogue = Catalogue(scored.shards)
    points = {"pixel_stride": scored.pixel_stride, "max_depth": scored.max_depth}
    config = config.model_copy(update={"data": config.data.model_copy(update=points)})
    recipe = build_recipe(config, catalogue, False, scored.ignored_labels)
    for done, batch in enumerate(scored_stream(scored, catalogue, recipe).batches(), start=1):
        yield batch
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
