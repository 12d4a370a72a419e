"""The score map s = h3D_hat . t of figure 4: what the words say of every voxel of the bottleneck."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compare_with_text(expanded: Tensor, text: Tensor, logit_scale: float) -> Tensor:
    """Cosines over a temperature, in float32 at least: in bf16 they would be off by 0.06 at the default temperature.

    Args:
        expanded: (Vb, d) h3D_hat, not normalised.
        text: (K, d) unit-norm.
        logit_scale: 1 / temperature.

    Returns:
        (Vb, K), whatever the caller's autocast.
    """
    with torch.autocast(expanded.device.type, enabled=False):
        expanded = F.normalize(expanded.to(torch.promote_types(expanded.dtype, torch.float32)), dim=1)
        return logit_scale * expanded @ text.to(expanded.dtype).T
