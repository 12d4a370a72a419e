"""Scores of an exported network on labelled points: zero-shot after pre-training, its head's after fine-tuning.

Nothing of CLIP is needed: the embeddings of the labels are in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from t4p.config import EvaluateConfig, PretrainConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledBatch, build_label_recipe
from t4p.data.stream import ValidationStream
from t4p.data.transforms import IGNORED
from t4p.errors import DataError
from t4p.metrics.semantic import SemanticScores, confusion, scores
from t4p.models.exported import ExportedNetwork, load_exported_network


def evaluate(
    config: EvaluateConfig, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[ExportedNetwork, SemanticScores]:
    """Score an exported network by ScanNet's protocol, on every point of the datasets.

    Of a frame: the readings that `data.pixel_stride` and `data.max_depth` leave and that the colour camera sees.

    Args:
        on_progress: called with (samples done, samples in all).

    Returns:
        The network as read, and its scores; class ids are the rows of its labels.

    Raises:
        CheckpointError: the file is no export, or is damaged.
        ConfigError: the classes of a dataset are not its labels.
        ShardError, DataError: the data is missing or damaged, or holds no labelled point.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exported = load_exported_network(Path(config.model.exported), device)
    catalogue = Catalogue(config.data.shards)
    points = {"pixel_stride": config.data.pixel_stride, "max_depth": config.data.max_depth}
    data, model = exported.config.data.model_copy(update=points), exported.config.model
    recipe = build_label_recipe(catalogue, data, model, exported.labels, config.data.ignored_labels, augment=None)
    class_ids = range(len(exported.labels))
    counts = confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), class_ids)
    stream = ValidationStream(catalogue, recipe, config.data.num_workers, 0, 1)
    for done, batch in enumerate(stream.batches(), start=1):
        predictions = predict(exported, batch, device)[batch.voxel_of_point]
        counts += confusion(predictions.numpy(), batch.label_of_point.numpy(), class_ids, (IGNORED,))
        on_progress(done, catalogue.num_samples)
    if not counts.sum():
        raise DataError(
            f"{', '.join(catalogue.urls)}: not one of the points has a label; look at a sample with `t4p shards show`"
        )
    return exported, scores(counts, class_ids)


@torch.no_grad()
def predict(exported: ExportedNetwork, batch: LabelledBatch, device: torch.device) -> Tensor:
    """The label of every voxel: (V,) int64 on the CPU.

    After pre-training that of the nearest text embedding at its bottleneck voxel; after fine-tuning the head's.
    """
    text = exported.label_embeddings
    expanded, decoded = exported.net(batch.voxel_coords.to(device), batch.voxel_features.to(device), text)
    if isinstance(exported.config, PretrainConfig):
        similarity = F.normalize(expanded.float(), dim=1) @ text.T
        return similarity.argmax(dim=1).cpu()[batch.bottleneck_of_voxel]
    return decoded.argmax(dim=1).cpu()
