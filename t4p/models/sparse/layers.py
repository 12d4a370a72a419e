"""Convolution layers over a sparse pyramid: they own the weight, the pyramid does the work."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from t4p.models.sparse.coordinates import double_coords
from t4p.models.sparse.pyramid import SparsePyramid, build_pyramid

# How many inputs really reach one output voxel: depth maps are surfaces, so most offsets of a kernel are empty.
# Counted on real frames of a Kinect, the same within 4 % at 2, 4, 8 and 16 cm: 13.2 of 27, 38 of 125, 3.4 of 8
# children. A transposed kernel 2, stride 2 has exactly one parent. He initialisation with the full K^3 would shrink the
# signal by 0.7 in every layer of kernel 3 and 0.35 in every upsampling.
_ACTIVE_NEIGHBOURS = {1: 1.0, 3: 13.2, 5: 38.0}
_ACTIVE_CHILDREN = 3.4


def active_neighbours(kernel_size: int) -> float:
    """Expected occupied offsets of an odd kernel on a surface; about 1.5 K^2 beyond what was counted."""
    return _ACTIVE_NEIGHBOURS.get(kernel_size, 1.5 * kernel_size**2)


def _he_weight(num_offsets: int, in_channels: int, out_channels: int, active_offsets: float) -> nn.Parameter:
    """(num_offsets, Cin, Cout), normal with the variance that keeps the second moment through a ReLU."""
    std = math.sqrt(2.0 / (in_channels * active_offsets))
    return nn.Parameter(torch.randn(num_offsets, in_channels, out_channels) * std)


class SubmanifoldConv(nn.Module):
    """Odd kernel, stride 1, outputs at the existing voxels; no bias, a norm follows."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {kernel_size}; wanted an odd number")
        self.weight = _he_weight(kernel_size**3, in_channels, out_channels, active_neighbours(kernel_size))

    def forward(self, pyramid: SparsePyramid, features: Tensor, level: int) -> Tensor:
        """(V_level, Cin) to (V_level, Cout)."""
        return pyramid.conv(features, self.weight, level)


class Downsample(nn.Module):
    """Kernel 2, stride 2; no bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = _he_weight(8, in_channels, out_channels, _ACTIVE_CHILDREN)

    def forward(self, pyramid: SparsePyramid, features: Tensor, level: int) -> Tensor:
        """(V_level, Cin) to (V_{level+1}, Cout)."""
        return pyramid.downsample(features, self.weight, level)


class Upsample(nn.Module):
    """Transposed kernel 2, stride 2, onto the existing finer voxels; no bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = _he_weight(8, in_channels, out_channels, 1.0)

    def forward(self, pyramid: SparsePyramid, features: Tensor, level: int) -> Tensor:
        """(V_level, Cin) to (V_{level-1}, Cout)."""
        return pyramid.upsample(features, self.weight, level)


class GenerativeUpsample(nn.Module):
    """Transposed kernel 2, stride 2, onto all 8 children of every voxel, whether a point lies in them or not; no bias.

    The middle of an object is where no camera looked, and a head can only predict something where there are voxels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = _he_weight(8, in_channels, out_channels, 1.0)

    def forward(self, pyramid: SparsePyramid, features: Tensor, level: int) -> tuple[SparsePyramid, Tensor]:
        """(V_level, Cin) to (8 V_level, Cout) on level 0 of a new pyramid, whose level 1 is that level.

        Raises:
            ValueError: level, rows or channels do not fit, or a child's coordinate does not fit into int32.
        """
        children = build_pyramid(pyramid.backend, double_coords(pyramid.coords(level)), 2)
        return children, children.upsample(features, self.weight, 1)
