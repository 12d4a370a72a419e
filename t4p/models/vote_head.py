"""The plain head of instance segmentation: of every voxel what it is, and where the middle of its object lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from t4p.models.score_map import compare_with_text_or_none


class VoteHead(nn.Module):
    """z3D to a class against text and an offset (PointGroup's two branches). No weight depends on the labels."""

    def __init__(self, in_channels: int, clip_dim: int, logit_scale: float) -> None:
        """
        Args:
            in_channels: C, the width of z3D.
            clip_dim: d, the width of the text.
            logit_scale: what the multiplier of the cosines begins with; it is learnt.
        """
        super().__init__()
        self.to_text = nn.Sequential(nn.Linear(in_channels, in_channels), nn.ReLU(), nn.Linear(in_channels, clip_dim))
        self.to_offset = nn.Sequential(nn.Linear(in_channels, in_channels), nn.ReLU(), nn.Linear(in_channels, 3))
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]))
        self.no_object = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """What every voxel says.

        Args:
            features: (V, C).
            text: (K, d) unit-norm.

        Returns:
            class_logits: (V, K + 1), the last column for what is none of the labels.
            offsets: (V, 3) metres, from the voxel to the middle of its object.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            class_logits = compare_with_text_or_none(self.to_text(features), text, self.log_logit_scale, self.no_object)
            return class_logits, self.to_offset(features)
