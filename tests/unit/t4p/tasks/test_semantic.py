"""What a fine-tuning puts up with."""

import pytest
import torch

from t4p.errors import RunError
from t4p.runs.logs import StepRecord
from t4p.tasks.semantic import MOST_STEPS_WITHOUT_LABEL, SemanticTask


def record(step, labelled_voxels, loss=1.0, gradient_norm=1.0):
    terms = {"loss": loss, "loss_task": loss, "loss_aux": 0.0, "labelled_voxels": labelled_voxels}
    return StepRecord(step, terms, 1e-3, gradient_norm, 4 * step, 0, 1.0, 1.0, 0.0)


@pytest.fixture
def task():
    return SemanticTask(("chair",), torch.device("cpu"), None)


def test_batches_without_a_label_are_no_fault_until_there_is_nothing_else(task):
    for step in range(1, 3 * MOST_STEPS_WITHOUT_LABEL):  # a label in every 100th step only
        task.check(record(step, float(step % MOST_STEPS_WITHOUT_LABEL == 0)))
    with pytest.raises(RunError, match=r"step 300: for 100 steps no sample of a batch had a point with a label"):
        task.check(record(300, 0.0))
