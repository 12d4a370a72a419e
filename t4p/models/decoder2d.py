"""The trainable 2D decoder g2D: frozen coarse CLIP features to fine image features, the image side of L_d."""

import torch
from torch import Tensor, nn


class Decoder2d(nn.Module):
    """Convolutions that double the resolution log2(upsample) times, then a 1x1 head.

    Group normalisation, no batch statistics: ranks may hold different numbers of frames (down to one, or none), and a
    frame's features must not depend on which frames share its rank.
    """

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, upsample: int) -> None:
        """
        Args:
            in_channels: d of the CLIP features.
            hidden_channels: width of all stages.
            out_channels: C, as wide as the 3D decoder's output.
            upsample: how many output pixels per cell side, a power of 2; 1 keeps the resolution.

        Raises:
            ValueError: upsample is not a power of 2.
        """
        super().__init__()
        if upsample < 1 or upsample & (upsample - 1):
            raise ValueError(
                f"upsample is {upsample}; the decoder doubles the resolution per stage, so use 1, 2, 4, 8, ..."
            )
        self.upsample = upsample
        stages: list[nn.Module] = [_conv_stage(in_channels, hidden_channels)]
        for _ in range(upsample.bit_length() - 1):
            # Interpolate, then convolve: a transposed convolution would leave a checkerboard that L_d reads as texture.
            stages += [
                nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
                _conv_stage(hidden_channels, hidden_channels),
            ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Conv2d(hidden_channels, out_channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Decode dense features.

        Args:
            features: (F, d, Hc, Wc) dense CLIP features; F may be 0.

        Returns:
            (F, C, Hc * upsample, Wc * upsample), z2D, not normalised.
        """
        return self.head(self.stages(features))


def _conv_stage(in_channels: int, out_channels: int) -> nn.Sequential:
    num_groups = next(groups for groups in (8, 4, 2, 1) if out_channels % groups == 0)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        _GroupNorm(num_groups, out_channels),
        nn.GELU(),
    )


class _GroupNorm(nn.GroupNorm):
    """Group norm that computes and returns at least float32, whatever autocast made of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))
