"""How good a small CLIP is: dense zero-shot labels against exact ones, and images against their captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from recipes.small_clip.rooms import CLASS_NAMES, NUM_STRUCTURE_CLASSES, RoomFrames
from t4p.metrics.semantic import evaluate
from t4p.models.clip import ClipTowers

TEMPLATES = ("point cloud of a {}", "a photo of a {}")  # t4p's own, and CLIP's
_FRAMES_PER_BATCH = 16
_CLASS_IDS = range(1, len(CLASS_NAMES) + 1)


@dataclass(frozen=True)
class DenseScore:
    """Scores of labels given to pixels; IoU in [0, 1], nan for a class that is not there.

    Attributes:
        miou: over all classes.
        miou_furniture: over those that are not wall, floor or ceiling.
        iou: by class name.
    """

    miou: float
    miou_furniture: float
    iou: Mapping[str, float]


def score_dense(towers: ClipTowers, frames: RoomFrames, template: str) -> DenseScore:
    """Give every pixel the class whose prompt is nearest to its cell, the similarities interpolated between cells."""
    text = towers.encode_labels(CLASS_NAMES, template)
    found = []
    for start in range(0, len(frames.colors), _FRAMES_PER_BATCH):
        chosen = slice(start, start + _FRAMES_PER_BATCH)
        found.append(towers.nearest_labels(torch.from_numpy(frames.colors[chosen]), text).numpy() + 1)
    return dense_score(np.concatenate(found), frames)


def score_one_answer(frames: RoomFrames) -> DenseScore:
    """What somebody scores who calls everything a wall: the trivial predictor to beat."""
    return dense_score(np.ones_like(frames.labels), frames)


def dense_score(predicted: NDArray[np.integer], frames: RoomFrames) -> DenseScore:
    """The score of a class for every pixel of all frames."""
    found = evaluate(predicted, frames.labels, _CLASS_IDS, ignore_ids=(0,))
    furniture = found.miou_of(_CLASS_IDS[NUM_STRUCTURE_CLASSES:])
    return DenseScore(found.miou, furniture, dict(zip(CLASS_NAMES, found.iou.values(), strict=True)))


@torch.no_grad()
def score_retrieval(towers: ClipTowers, frames: RoomFrames, ranks: tuple[int, ...] = (1, 5)) -> dict[str, float]:
    """How often an image finds its own caption among all different ones, within so many guesses.

    The whole image goes through `encode_image`, squeezed to the square that the tower was built for.
    """
    captions = sorted(set(frames.captions))
    position = {caption: index for index, caption in enumerate(captions)}
    own = torch.tensor([position[caption] for caption in frames.captions])
    text = F.normalize(towers.model.encode_text(towers.tokenizer(captions)), dim=1)
    size = int(towers.model.visual.image_size)
    hits = dict.fromkeys(ranks, 0)
    for start in range(0, len(frames.colors), _FRAMES_PER_BATCH):
        chosen = slice(start, start + _FRAMES_PER_BATCH)
        images = F.interpolate(towers.normalize(torch.from_numpy(frames.colors[chosen])), (size, size), mode="bilinear")
        similarity = F.normalize(towers.model.encode_image(images), dim=1) @ text.T
        better = (similarity > similarity.gather(1, own[chosen, None])).sum(dim=1)
        for rank in ranks:
            hits[rank] += int((better < rank).sum())
    return {f"recall_at_{rank}": hits[rank] / len(own) for rank in ranks} | {"num_captions": float(len(captions))}
