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
from t4p.tasks.scored import ScoreSheet, SheetRow

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


def compare_found(
    found: Iterable[FoundMasks], batch: ObjectBatch, num_labels: int, on_masks: OnMasks | None = None
) -> Iterator[ComparedScene]:
    """The masks of every sample of a batch beside its true instances, point by point.

    Args:
        on_masks: told of the masks of each.
    """
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
    for sample, of_sample in enumerate(found):
        own = sample_of_voxel[voxel_of_point] == sample
        rows = voxel_of_point[own] - np.count_nonzero(sample_of_voxel < sample)
        masks = of_sample.masks[:, rows]
        if on_masks is not None:
            on_masks(labelled.keys[sample], masks, of_sample.class_ids, of_sample.scores)
        scene = InstanceScene(
            semantic=label_of_point[own],
            instance=instance_of_point[own] + 1,
            masks=masks,
            class_ids=of_sample.class_ids,
            scores=of_sample.scores,
        )
        yield compare(scene, range(num_labels), MIN_REGION)


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
