"""The score map s = h3D_hat . t of figure 4, what the words say of every bottleneck voxel, and heads that use it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class VoxelScores(NamedTuple):
    """What a network says of the voxels of a batch, for a list of labels.

    Attributes:
        scores: (V, K) float32, cosines or logits, as its task has them.
        expanded: (Vb, d) h3D_hat of the same pass, not normalised.
    """

    scores: Tensor
    expanded: Tensor


def compare_with_text(expanded: Tensor, text: Tensor, logit_scale: float | Tensor) -> Tensor:
    """Cosines over a temperature, in float32 at least: in bf16 they would be off by 0.06 at the default temperature.

    Args:
        expanded: (Vb, d) h3D_hat, not normalised.
        text: (K, d) unit-norm.
        logit_scale: 1 / temperature; one number.

    Returns:
        (Vb, K), whatever the caller's autocast.
    """
    with torch.autocast(expanded.device.type, enabled=False):
        expanded = F.normalize(expanded.to(torch.promote_types(expanded.dtype, torch.float32)), dim=1)
        return logit_scale * expanded @ text.to(expanded.dtype).T


def compare_with_text_or_none(embedded: Tensor, text: Tensor, log_logit_scale: Tensor, no_object: Tensor) -> Tensor:
    """The logits of a learnt head: of every label, and of none of them, which no text says.

    Args:
        embedded: (..., d), not normalised.
        text: (K, d) unit-norm.
        log_logit_scale, no_object: (1,) learnt: logarithm of 1 / temperature, and the logit of none.

    Returns:
        (..., K + 1), the last column for none; in float32 at least, whatever the caller's autocast.
    """
    cosines = compare_with_text(embedded.flatten(0, -2), text, 1.0).unflatten(0, embedded.shape[:-1])
    return torch.cat([log_logit_scale.exp() * cosines, no_object.expand(*embedded.shape[:-1], 1)], dim=-1)


def score_voxels(head: str, decoded: Tensor, score_map: Tensor, bottleneck_of_voxel: Tensor) -> Tensor:
    """What a fine-tuned head says of every voxel.

    Args:
        head: `model.head`: "linear" is the linear layer alone, "words" that and the score map.
        decoded: (V, K) of the linear layer on z3D.
        score_map: (Vb, K) of `compare_with_text`.
        bottleneck_of_voxel: (V,) int64 row of the score map.

    Returns:
        (V, K) logits.
    """
    return decoded + score_map.index_select(0, bottleneck_of_voxel) if head == "words" else decoded
