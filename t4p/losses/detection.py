"""What locations of a sparse grid learn of boxes: whose they are, which class, and how far their own box is off.

The assignment and the losses follow TR3D (Rukhovich et al., Towards Real-Time Indoor 3D Object Detection, 2023),
written from the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t4p.distributed import all_reduce_sum, world_size
from t4p.losses.oriented_iou import footprint_corners, paired_iou

NO_BOX = -1  # what a location has for a row of boxes where it belongs to none

# Of the focal loss (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017), best in their ablation.
ALPHA = 0.25
GAMMA = 2.0


def assign_locations(
    centers_of_location: Tensor,
    sample_of_location: Tensor,
    is_coarse: Tensor,
    boxes: Tensor,
    sample_of_box: Tensor,
    is_coarse_box: Tensor,
    top_k: int,
) -> Tensor:
    """Give every box the locations nearest to its centre, of its own sample and level.

    A location that several boxes want goes to the one whose centre is nearest. A box has fewer than top_k locations
    where its level has not as many, or others are nearer to them; none where its level has none. Equal distances: the
    location, or the box, with the lower row.

    Args:
        centers_of_location: (L, 3) metres.
        sample_of_location: (L,) integer.
        is_coarse: (L,) bool, the level.
        boxes: (M, 7) centres in the frame of the locations.
        sample_of_box: (M,) integer.
        is_coarse_box: (M,) bool, the level that is asked for the box.
        top_k: at least 1.

    Returns:
        (L,) int64 row of boxes, or NO_BOX.
    """
    box_of_location = torch.full((len(centers_of_location),), NO_BOX, device=centers_of_location.device)
    # Sample by sample: distances of all locations to the boxes of all samples would be as many times more.
    for sample in sample_of_box.unique().tolist():
        locations = (sample_of_location == sample).nonzero()[:, 0]
        rows = (sample_of_box == sample).nonzero()[:, 0]
        if not len(locations):
            continue
        distances = (boxes[rows, None, :3] - centers_of_location[locations]).square().sum(-1)
        other_level = is_coarse_box[rows, None] != is_coarse[locations]
        distances = _of_the_nearest(distances.masked_fill(other_level, torch.inf), top_k)
        nearest = distances.argmin(0)  # the first of equal ones
        is_wanted = distances.amin(0) < torch.inf
        box_of_location[locations[is_wanted]] = rows[nearest[is_wanted]]
    return box_of_location


def detection_loss(
    class_logits: Tensor, boxes: Tensor, box_of_location: Tensor, true_boxes: Tensor, label_of_box: Tensor
) -> tuple[Tensor, Tensor]:
    """Sigmoid focal loss of every location and class, and distance-IoU loss of the locations that belong to a box.

    Collective. Both are W x (sum over this rank) / (locations with a box of all ranks, at least 1): their averages over
    ranks are those of the global batch. Without any location, or any box, they still have a graph.

    Args:
        class_logits: (L, K).
        boxes: (L, 7) predicted.
        box_of_location: (L,) int64 row of true_boxes, or NO_BOX, of `assign_locations`.
        true_boxes: (M, 7).
        label_of_box: (M,) int64 in 0 .. K - 1.

    Returns:
        loss_class: scalar.
        loss_box: scalar.
    """
    class_logits = class_logits.to(torch.promote_types(class_logits.dtype, torch.float32))
    is_positive = box_of_location != NO_BOX
    positive = is_positive.nonzero()[:, 0]
    box_of_positive = box_of_location[positive]
    targets = torch.zeros_like(class_logits)
    targets[positive, label_of_box[box_of_positive]] = 1
    predicted = boxes[positive]
    true = true_boxes[box_of_positive].to(predicted.dtype)
    num_positive = all_reduce_sum(is_positive.sum().to(class_logits.dtype)).clamp(min=1)
    scale = world_size() / num_positive
    return scale * _focal_losses(class_logits, targets).sum(), scale * _distance_iou_losses(predicted, true).sum()


def _of_the_nearest(distances: Tensor, top_k: int) -> Tensor:
    """distances (M, L) with the top_k smallest of each row, the first of equal ones, and infinity for all others."""
    top_k = min(top_k, distances.shape[1])
    # Which of equal values topk takes is not said, the value of the last is certain.
    last = distances.topk(top_k, largest=False).values[:, -1:]
    is_nearer, is_last = distances < last, distances == last
    num_free = top_k - is_nearer.sum(1, keepdim=True)
    return distances.masked_fill(~(is_nearer | is_last & (is_last.cumsum(1) <= num_free)), torch.inf)


def _focal_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each (logit, target 0 or 1), times what the prediction is off to the power GAMMA."""
    probability = logits.sigmoid()
    off = torch.where(targets == 1, 1 - probability, probability)
    weight = torch.where(targets == 1, ALPHA, 1 - ALPHA)
    return weight * off**GAMMA * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _distance_iou_losses(predicted: Tensor, true: Tensor) -> Tensor:
    """(P,) 1 - IoU + squared distance of the centres over the squared diagonal of what encloses both boxes.

    Zheng et al., Distance-IoU Loss, AAAI 2020: boxes apart have no IoU to climb, but a distance. What encloses them has
    the axes of the frame, also where the boxes are turned.
    """
    lowest, highest = zip(_bounds(predicted), _bounds(true), strict=True)
    diagonal = (torch.maximum(*highest) - torch.minimum(*lowest)).square().sum(1)
    distance = (predicted[:, :3] - true[:, :3]).square().sum(1)
    return 1 - paired_iou(predicted, true) + distance / diagonal.clamp(min=torch.finfo(diagonal.dtype).tiny)


def _bounds(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 3) lowest and (P, 3) highest coordinates of boxes (P, 7)."""
    centers, half_height = boxes[:, :3], boxes[:, 5:6] / 2
    corners = footprint_corners(boxes)
    lowest = torch.cat([corners.amin(1), -half_height], dim=1)
    highest = torch.cat([corners.amax(1), half_height], dim=1)
    return centers + lowest, centers + highest
