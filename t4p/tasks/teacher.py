"""What the frozen image tower itself makes of labelled frames: the ceiling of what points can learn from it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shards.schema import Frame
from t4p.config import EvaluatedDataConfig, PretrainConfig
from t4p.data.decode import decode_frame
from t4p.data.fetch import Catalogue
from t4p.data.labelled import decode_frame_labels
from t4p.data.labels import build_label_table
from t4p.data.transforms import IGNORED, lift_frame
from t4p.metrics.semantic import SemanticScores, confusion, scores
from t4p.models.clip import ClipTowers
from t4p.tasks.pretrain import load_towers_from


@torch.no_grad()
def score_teacher(
    config: PretrainConfig,
    scored: EvaluatedDataConfig,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> SemanticScores:
    """Score the image tower of a pre-training on the points that `score_network` scores its 3D network on.

    Every point has the label whose text embedding is nearest at its pixel, the similarities interpolated between cells
    (the reading of MaskCLIP).

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
        ShardError: the data is missing or damaged.
    """
    model = config.model
    assert isinstance(model.labels, tuple)  # the loader has read the file
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    towers = load_towers_from(model.clip, config.run.seed).to(device)
    text = towers.encode_labels(model.labels, model.text_query.template).to(device)
    catalogue = Catalogue(scored.shards)
    catalogue.require_frames()
    table_of_dataset = [
        build_label_table(names, model.labels, scored.ignored_labels, url)
        for names, url in zip(catalogue.label_names, catalogue.urls, strict=True)
    ]
    class_ids = range(len(model.labels))
    counts = confusion(np.zeros(0, np.int64), np.zeros(0, np.int64), class_ids)
    done = 0
    for shard, num_samples in enumerate(catalogue.samples_per_shard):
        table = table_of_dataset[catalogue.dataset_index(shard)]
        for sample in range(num_samples):
            frame = catalogue.fetch(shard, sample)
            assert isinstance(frame, Frame)  # require_frames
            decoded = decode_frame(frame)
            points = lift_frame(decoded, config.data.image_size, scored.pixel_stride, scored.max_depth, in_world=False)
            label_of_pixel = (
                nearest_labels(towers, torch.from_numpy(np.array(points.image)).to(device), text).cpu().numpy()
            )
            ids = decode_frame_labels(frame, decoded)[tuple(points.depth_pixel_of_point.T)]
            predicted = label_of_pixel[tuple(points.pixel_of_point.T)]
            counts += confusion(predicted, table.look_up(ids), class_ids, (IGNORED,))
            done += 1
            on_progress(done, catalogue.num_samples)
    return scores(counts, class_ids)


def nearest_labels(towers: ClipTowers, image: Tensor, text: Tensor) -> Tensor:
    """The index of the nearest text embedding at every pixel.

    Args:
        image: (H, W, 3) uint8; sides are multiples of the tower's cell.
        text: (K, d) unit-norm.

    Returns:
        (H, W) int64.
    """
    cells = F.normalize(towers.dense_features(towers.normalize(image[None])), dim=1)
    similarity = torch.einsum("fdhw,kd->fkhw", cells, text)
    return F.interpolate(similarity, image.shape[:2], mode="bilinear", align_corners=False)[0].argmax(dim=0)
