"""What the tasks that find objects have in common: a validation that compares its samples with the truth one by one.

And what is shown of a sample that was scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from t4p.config.tasks import FinetuneConfig
from t4p.data.boxes import bounds_of
from t4p.data.objects import ObjectBatch, ObjectSample
from t4p.data.stream import ValidationStream
from t4p.distributed import all_gather_objects
from t4p.models.text4point import Text4Point
from t4p.runs.logs import StepRecord
from t4p.tasks.finetune import PromptedModule
from t4p.tasks.scored import Objects, ScoredSample

Compared = TypeVar("Compared")
# Of a network, its head, (K, d) labels, metres of a voxel and a batch on their device: what each sample comes to.
CompareBatch = Callable[[Text4Point, Any, Tensor, float, ObjectBatch], Iterator[Compared]]


class ObjectTask(Generic[Compared]):
    """A task whose module has `net`, `head` and prompts; see `t4p.train.loop.Task`."""

    def __init__(
        self,
        config: FinetuneConfig,
        device: torch.device,
        validation: ValidationStream[ObjectSample, ObjectBatch] | None,
    ) -> None:
        self._labels = config.model.label_names
        self._voxel_size = config.model.voxel_size
        self._device = device
        self._validation = validation

    def check(self, record: StepRecord) -> None:
        """A batch without an object is no fault: it teaches what is none."""

    def compare(self, module: nn.Module, compare_batch: CompareBatch[Compared]) -> list[Compared] | None:
        """What all samples of the validation data come to, over all ranks; None where there are none. Collective."""
        if self._validation is None:
            return None
        assert isinstance(module, PromptedModule)
        module.eval()
        text = module.embed_labels()
        own = [
            compared
            for batch in self._validation.batches()
            for compared in compare_batch(module.net, module.head, text, self._voxel_size, batch.to(self._device))
        ]
        return [compared for of_rank in all_gather_objects(own) for compared in of_rank]


def scored_sample(
    batch: ObjectBatch, points: NDArray[np.float32], measure: str, score: float, predicted: Objects, truth: Objects
) -> ScoredSample:
    """The one sample of a batch, for whoever looks at samples; arguments as the attributes of ScoredSample."""
    return ScoredSample(batch.labelled.keys[0], measure, score, points, predicted, truth, None, batch.labelled)


def objects_of_masks(
    points: NDArray[np.float32], masks: NDArray[np.bool_], label_ids: ArrayLike, scores: ArrayLike
) -> Objects:
    """Masks (P, V) over voxels with middles (V, 3) as objects, those that hold a voxel, with their bounds."""
    held = masks.any(axis=1)
    return Objects(
        label_ids=np.asarray(label_ids, np.int64)[held],
        scores=np.asarray(scores, np.float64)[held],
        boxes=bounds_of(points, [np.flatnonzero(mask) for mask in masks[held]]),
        masks=masks[held],
    )


def objects_of_boxes(boxes: ArrayLike, label_ids: ArrayLike, scores: ArrayLike) -> Objects:
    """Boxes (P, 7) as objects."""
    return Objects(
        label_ids=np.asarray(label_ids, np.int64),
        scores=np.asarray(scores, np.float64),
        boxes=np.asarray(boxes, np.float64).reshape(-1, 7),
        masks=None,
    )
