"""Checks of what goes into a sparse convolution, the same for every backend."""

from __future__ import annotations

from torch import Tensor


def odd_kernel_size(weight: Tensor) -> int:
    """K of a weight (K^3, Cin, Cout).

    Raises:
        ValueError: the weight is not three-dimensional or its first size is not the cube of an odd number.
    """
    kernel_size = round(weight.shape[0] ** (1 / 3)) if weight.dim() == 3 else 0
    if kernel_size % 2 == 0 or kernel_size**3 != weight.shape[0]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; wanted (K^3, Cin, Cout) with an odd K: 1, 27, 125, ... kernel "
            "offsets in front"
        )
    return kernel_size


def check_operands(features: Tensor, weight: Tensor, num_voxels: int, level: int) -> None:
    """Refuse features that do not belong to this level or do not fit the weight.

    Raises:
        ValueError: says what was found and what was wanted.
    """
    if features.dim() != 2 or features.shape[0] != num_voxels:
        raise ValueError(
            f"features have shape {tuple(features.shape)} but level {level} of the pyramid has {num_voxels} voxels; "
            "wanted one row per voxel"
        )
    if weight.dim() != 3 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and features {tuple(features.shape)}; wanted "
            f"(kernel offsets, {features.shape[1]}, Cout)"
        )
    if weight.device != features.device:
        raise ValueError(f"weight is on {weight.device} but features are on {features.device}; move one of them")


def check_strided_weight(weight: Tensor) -> None:
    """Refuse a weight that is not (8, Cin, Cout)."""
    if weight.dim() != 3 or weight.shape[0] != 8:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; wanted (8, Cin, Cout): kernel 2, stride 2")


def check_level(level: int, first: int, last: int, operation: str) -> None:
    """Refuse a level outside first..last, negative ones included."""
    if not first <= level <= last:
        raise ValueError(f"{operation} at level {level}: this pyramid allows levels {first} to {last}")
