"""The score map s = h3D_hat . t of figure 4, what the words say of every bottleneck voxel, and heads that use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
