"""What the tasks that find objects have in common: a validation that compares its samples with the truth one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from t4p.config.tasks import FinetuneConfig
from t4p.data.objects import ObjectBatch, ObjectSample
from t4p.data.stream import ValidationStream
from t4p.distributed import all_gather_objects
from t4p.models.text4point import Text4Point
from t4p.runs.logs import StepRecord
from t4p.tasks.finetune import PromptedModule

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
