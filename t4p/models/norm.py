"""Normalisation of per-voxel features."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormKind = Literal["batch"]


def build_norm(kind: NormKind, num_channels: int) -> nn.Module:
    """A norm over rows of features (V, num_channels), float32 out (float64 for float64 in).

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "batch":
        return RowBatchNorm(num_channels, eps=1e-5, momentum=0.1)
    raise ValueError(f"unknown norm {kind!r}; choose batch")


class RowBatchNorm(nn.BatchNorm1d):
    """Batch norm over all rows of this rank, in float32 also under autocast, for any number of rows.

    Fewer than two rows have no variance (nn.BatchNorm1d raises on them), but at the bottleneck of a small or empty
    frame they happen, and a rank that raises there stops the whole job. They are normalised with the running
    statistics, which then stay as they are; every parameter still gets a gradient, zero for no rows.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (V, C), V >= 0."""
        if features.dtype != torch.float64:
            features = features.float()
        with torch.autocast(features.device.type, enabled=False):
            if self.training and len(features) >= 2:
                return super().forward(features)
            return F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
