"""Masks that were found in samples, beside what is there, and their scores: of any network that finds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t4p.data.objects import ObjectBatch
from t4p.errors import DataError
from t4p.metrics.instance import ComparedScene, InstanceScene, compare, scores_of
from t4p.tasks.evaluate import middles_of_voxels
from t4p.tasks.object_task import objects_of_masks, scored_sample
from t4p.tasks.scored import ScoredSample, ScoreSheet, SheetRow

MIN_REGION = 100  # points of the smallest instance that is scored, ScanNet's
MOST_MASKS = 100  # of a sample

# Told of a sample: its key, (P, N) masks over its points, (P,) rows of the labels and (P,) scores.
OnMasks = Callable[[str, NDArray[np.bool_], NDArray[np.int64], NDArray[np.floating]], None]


@dataclass(frozen=True, eq=False)
class FoundMasks:
    """The objects of one sample.

    Attributes:
        masks: (P, V) bool over its voxels.
        class_ids: (P,) int64 rows of the labels.
        scores: (P,) float in [0, 1], the surest first.
    """

    masks: NDArray[np.bool_]
    class_ids: NDArray[np.int64]
    scores: NDArray[np.float32]


def score_masks(
    found: Iterable[tuple[ObjectBatch, FoundMasks]],
    labels: Sequence[str],
    voxel_size: float,
    urls: Sequence[str],
    on_sample: Callable[[ScoredSample], None] | None,
    on_masks: OnMasks | None,
) -> ScoreSheet:
    """Score the masks of samples by ScanNet's protocol on points.

    Args:
        found: each sample in a batch of its own, and its masks.
        voxel_size: metres.
        urls: places of the datasets, for messages.
        on_sample: told what was said of each sample.
        on_masks: told of the masks of each. Then no point needs a true object, and without any the scores are nan.

    Raises:
        DataError: they hold no object.
    """
    class_ids, compared = range(len(labels)), []
    for batch, masks in found:
        (scene,) = scenes_of_batch((masks,), batch)
        compared.append(compare(scene, class_ids, MIN_REGION))
        if on_masks is not None:
            on_masks(batch.labelled.keys[0], np.asarray(scene.masks), masks.class_ids, masks.scores)
        if on_sample is not None:
            on_sample(_look_at(batch, masks, voxel_size, scores_of(compared[-1:], class_ids).mean_ap50))
    return sheet_of(labels, compared, urls, unlabelled=on_masks is not None)


def scenes_of_batch(found: Iterable[FoundMasks], batch: ObjectBatch) -> Iterator[InstanceScene]:
    """The masks of every sample of a batch beside its true instances, point by point."""
    labelled = batch.labelled
    sample_of_voxel, voxel_of_point, label_of_point, instance_of_point = (
        tensor.cpu().numpy()
        for tensor in (
            labelled.voxel_coords[:, 0],
            labelled.voxel_of_point,
            labelled.label_of_point,
            batch.instance_of_point,
        )
    )
    for sample, masks in enumerate(found):
        own = sample_of_voxel[voxel_of_point] == sample
        rows = voxel_of_point[own] - np.count_nonzero(sample_of_voxel < sample)
        yield InstanceScene(
            semantic=label_of_point[own],
            instance=instance_of_point[own] + 1,
            masks=masks.masks[:, rows],
            class_ids=masks.class_ids,
            scores=masks.scores,
        )


def _look_at(batch: ObjectBatch, masks: FoundMasks, voxel_size: float, score: float) -> ScoredSample:
    """The one sample of a batch with its objects, found and true."""
    points = middles_of_voxels(batch.labelled.voxel_coords[:, 1:], voxel_size).cpu().numpy()
    label_ids = batch.label_of_instance.numpy()
    there = batch.instance_of_voxel.numpy() == np.arange(len(label_ids))[:, None]
    return scored_sample(
        batch,
        points,
        "AP50",
        score,
        objects_of_masks(points, masks.masks, masks.class_ids, masks.scores),
        objects_of_masks(points, there, label_ids, np.ones(len(there))),
    )


def sheet_of(
    labels: Sequence[str], compared: Iterable[ComparedScene], urls: Sequence[str], *, unlabelled: bool = False
) -> ScoreSheet:
    """The scores of scenes as a table.

    Args:
        urls: places of the datasets, for messages.
        unlabelled: the scores are nan where they hold no object.

    Raises:
        DataError: they hold no object.
    """
    found = scores_of(compared, range(len(labels)))
    if not (math.isfinite(found.mean_ap) or unlabelled):
        raise DataError(
            f"{', '.join(urls)}: no object of the network's labels with {MIN_REGION} points; look at a sample with "
            "`t4p shards show`"
        )
    return ScoreSheet(
        protocol="ScanNet's protocol on points",
        columns=("AP", "AP50", "AP25"),
        rows=tuple(
            SheetRow(label, (found.ap[index], found.ap50[index], found.ap25[index]))
            for index, label in enumerate(labels)
        ),
        means=(found.mean_ap, found.mean_ap50, found.mean_ap25),
    )
