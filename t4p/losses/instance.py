"""Masks that answer true instances: which query answers which, the loss of all layers, and what a prediction says.

The form is SPFormer's (Sun et al. 2023): a mask is a logit for each group of voxels of a sample, queries are assigned
to instances one to one, layer by layer, and a query without an instance learns that it shows nothing. Groups count
alike whatever their size, as published, though masks are scored on points: counting voxels, in Dice and IoU or in all
terms, did no better on made samples (three seeds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from t4p.distributed import all_reduce_sum, world_size

UNMATCHED = -1  # the instance of a query that answers none, and of a group that is in none


class MaskPredictions(NamedTuple):
    """What Q queries say of each of S samples, whose G groups lie side by side. Plain tensors, as ZeRO wants them."""

    class_logits: Tensor  # (S, Q, K + 1) column K: no object
    mask_logits: Tensor  # (Q, G) column g belongs to the sample of group g; row q is that sample's q-th query
    scores: Tensor  # (S, Q) logits of the predicted IoU


def by_layer(stacked: MaskPredictions) -> tuple[MaskPredictions, ...]:
    """The predictions of every layer of predictions that have a further dimension in front, for the layers."""
    return tuple(MaskPredictions(*tensors) for tensors in zip(*stacked, strict=True))


@dataclass(frozen=True)
class InstanceWeights:
    """What the parts of the loss, and of the cost of a match, count. The defaults are SPFormer's.

    Attributes:
        label: of the cross-entropy over labels; in a match, of the probability of the label.
        mask: of the binary cross-entropy of masks.
        dice: of the Dice loss of masks.
        score: of the squared error of the predicted IoU; no part of a match.
        no_object: of a query without an instance in the cross-entropy over labels; one with an instance counts 1.
    """

    label: float = 0.5
    mask: float = 1.0
    dice: float = 1.0
    score: float = 0.5
    no_object: float = 0.1


@torch.no_grad()
def match(
    predictions: MaskPredictions,
    instance_of_group: Tensor,
    label_of_instance: Tensor,
    sample_of_instance: Tensor,
    sample_of_group: Tensor,
    weights: InstanceWeights,
) -> Tensor:
    """The instance that each query answers: in every sample the assignment, one to one, of the least sum of costs.

    An instance without a group is matched to nobody: no mask can show it. Where a sample has more instances than there
    are queries, the dearest are left out.

    Args:
        predictions: of one layer.
        instance_of_group: (G,) int64 row of the instances, or UNMATCHED; of the group's own sample.
        label_of_instance: (M,) int64 in 0 .. K - 1.
        sample_of_instance: (M,) int64.
        sample_of_group: (G,) int64, ascending.

    Returns:
        (S, Q) int64 row of the instances, or UNMATCHED.
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and other trainings start without it

    class_logits, mask_logits, scores = predictions
    matched = torch.full(scores.shape, UNMATCHED, dtype=torch.int64)
    shown = torch.bincount(instance_of_group[instance_of_group != UNMATCHED], minlength=len(label_of_instance)) > 0
    for sample, groups in enumerate(_groups_of_samples(sample_of_group, len(scores))):
        instances = ((sample_of_instance == sample) & shown).nonzero().squeeze(1)
        truth = (instance_of_group[groups] == instances[:, None]).to(torch.float32)
        probability = _at_least_float32(class_logits[sample]).softmax(1)[:, label_of_instance[instances]]
        mask_cost, dice_cost = _mask_costs(mask_logits[:, groups], truth)
        cost = weights.mask * mask_cost + weights.dice * dice_cost - weights.label * probability
        # A network that has come apart is told of by its loss, on every rank at once; scipy would raise on one of them.
        queries, columns = linear_sum_assignment(cost.double().nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9).cpu())
        matched[sample, torch.from_numpy(queries)] = instances.cpu()[torch.from_numpy(columns)]
    return matched.to(scores.device)


def instance_loss(
    predictions: Sequence[MaskPredictions],
    instance_of_group: Tensor,
    label_of_instance: Tensor,
    sample_of_instance: Tensor,
    sample_of_group: Tensor,
    weights: InstanceWeights,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of all layers, each with matches of its own. Collective.

    Args:
        predictions: of every layer, with equally many queries on all ranks.
        instance_of_group, label_of_instance, sample_of_instance, sample_of_group: as for `match`.

    Returns:
        loss, loss_class, loss_mask, loss_score: scalars in float32 at least; the first is the sum of the others, whose
        weights are in them. loss_class is the mean over the weighted queries of all ranks, the others over all their
        matched queries, each summed over layers and times W, so that averaged over ranks they are the global ones. 0,
        with a graph, where there is nothing to count; no rank needs a sample, a group or an instance.
    """
    parts = []
    for layer in predictions:
        matched = match(layer, instance_of_group, label_of_instance, sample_of_instance, sample_of_group, weights)
        parts.append(
            torch.stack(
                [
                    _class_loss(layer.class_logits, matched, label_of_instance, weights.no_object),
                    *_mask_losses(layer, matched, instance_of_group, sample_of_group),
                ]
            )
        )
    loss_class, loss_mask, loss_dice, loss_score = torch.stack(parts).sum(0)
    # Which queries are matched differs between layers; how many does not.
    num_matched, num_queries = all_reduce_sum(
        torch.stack([(matched != UNMATCHED).sum(), torch.tensor(matched.numel(), device=matched.device)])
    ).to(loss_class.dtype)
    total_weight = num_matched + weights.no_object * (num_queries - num_matched)
    smallest = torch.finfo(loss_class.dtype).tiny
    loss_class = world_size() * weights.label * loss_class / total_weight.clamp(min=smallest)
    per_match = world_size() / num_matched.clamp(min=1)
    loss_mask = per_match * (weights.mask * loss_mask + weights.dice * loss_dice)
    loss_score = per_match * weights.score * loss_score
    return loss_class + loss_mask + loss_score, loss_class, loss_mask, loss_score


@torch.no_grad()
def decode_masks(
    prediction: MaskPredictions, sample_index: int, sample_of_group: Tensor, max_masks: int = 100
) -> tuple[Tensor, Tensor, Tensor]:
    """The masks of one sample, best first: every query under every label, as far as `max_masks` go.

    A mask is where its logit is above 0. Its score is the product of three: the probability of the label, the predicted
    IoU, and the mean probability of the mask over its groups. Empty masks are left out.

    Args:
        prediction: of the last layer.
        sample_of_group: (G,) int64, ascending.

    Returns:
        masks: (P, G_s) bool over the groups of the sample, P at most max_masks.
        class_ids: (P,) int64 in 0 .. K - 1.
        scores: (P,) in [0, 1], descending; equal ones in the order of the queries, then of the labels.
    """
    groups = _groups_of_samples(sample_of_group, len(prediction.scores))[sample_index]
    logits = _at_least_float32(prediction.mask_logits[:, groups])
    masks = logits > 0
    sizes = masks.sum(1)
    certainty = (logits.sigmoid() * masks).sum(1) / sizes.clamp(min=1)
    probability = _at_least_float32(prediction.class_logits[sample_index]).softmax(1)[:, :-1]
    scores = probability * (_at_least_float32(prediction.scores[sample_index]).sigmoid() * certainty)[:, None]
    queries, class_ids = (sizes > 0)[:, None].expand_as(scores).nonzero(as_tuple=True)
    scores = scores[queries, class_ids]
    best = scores.argsort(descending=True, stable=True)[:max_masks]
    return masks[queries[best]], class_ids[best], scores[best]


def _class_loss(class_logits: Tensor, matched: Tensor, label_of_instance: Tensor, no_object: float) -> Tensor:
    """Weighted sum of the cross-entropies of all queries."""
    logits = _at_least_float32(class_logits)
    nothing = logits.shape[-1] - 1
    labels = torch.cat([label_of_instance, label_of_instance.new_full((1,), nothing)])[matched]  # UNMATCHED: the last
    weight = logits.new_ones(nothing + 1)
    weight[nothing] = no_object
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight=weight, reduction="sum")


def _mask_losses(
    layer: MaskPredictions, matched: Tensor, instance_of_group: Tensor, sample_of_group: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the matched queries: binary cross-entropy, Dice loss, squared error of the predicted IoU."""
    mask_logits, scores = _at_least_float32(layer.mask_logits), _at_least_float32(layer.scores)
    nothing = mask_logits.flatten()[:0].sum()  # with a graph, where there is no sample
    loss_mask, loss_dice, loss_score = nothing, nothing, scores.flatten()[:0].sum()
    for sample, groups in enumerate(_groups_of_samples(sample_of_group, len(scores))):
        queries = (matched[sample] != UNMATCHED).nonzero().squeeze(1)
        logits = mask_logits[:, groups].index_select(0, queries)
        truth = instance_of_group[groups] == matched[sample, queries][:, None]
        inside = truth.to(logits.dtype)
        entropies = F.binary_cross_entropy_with_logits(logits, inside, reduction="none")
        loss_mask = loss_mask + entropies.sum() / max(logits.shape[1], 1)
        probability = logits.sigmoid()
        loss_dice = loss_dice + (1 - 2 * (probability * inside).sum(1) / (probability + inside).sum(1)).sum()
        mask = logits > 0
        iou = (mask & truth).sum(1) / (mask | truth).sum(1).to(logits.dtype)
        loss_score = loss_score + (scores[sample, queries].sigmoid() - iou).square().sum()
    return loss_mask, loss_dice, loss_score


def _mask_costs(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice loss of every mask with every instance, as products of matrices.

    Args:
        logits: (Q, G_s).
        truth: (M_s, G_s) of 0 and 1.

    Returns:
        (Q, M_s) both.
    """
    logits = _at_least_float32(logits)
    truth = truth.to(logits.dtype)
    # -t log(p) - (1 - t) log(1 - p) = softplus(x) - t x for p = sigmoid(x)
    mask_cost = (F.softplus(logits).sum(1, keepdim=True) - logits @ truth.T) / max(logits.shape[1], 1)
    probability = logits.sigmoid()
    sizes = probability.sum(1, keepdim=True) + truth.sum(1)
    return mask_cost, 1 - 2 * (probability @ truth.T) / sizes


def _groups_of_samples(sample_of_group: Tensor, num_samples: int) -> list[slice]:
    """Where the groups of every sample lie. Waits for the device."""
    ends = torch.bincount(sample_of_group, minlength=num_samples).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)] if num_samples else []


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
