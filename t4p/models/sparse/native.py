"""The native backend of the sparse pyramid: plain torch, nothing compiled."""

from __future__ import annotations

from torch import Tensor

from t4p.models.sparse import native_functions
from t4p.models.sparse.coordinates import halve_coords
from t4p.models.sparse.kernel_map import KernelMap, StrideMap, build_kernel_map, build_stride_map
from t4p.models.sparse.operands import check_level, check_operands, check_strided_weight, odd_kernel_size
from t4p.models.sparse.pyramid import SparseBackend


class NativePyramid:
    """SparsePyramid in plain torch, on the device of its coordinates, in the float type of the features.

    Under torch.autocast the GEMMs run in autocast's dtype and the results come back in it, partial sums in float32;
    weight gradients have the dtype of the weight. Repeatable bit for bit on a CPU with the same number of threads.
    Kernel maps are built once per level and kept for the backward pass. Not differentiable twice.
    """

    def __init__(self, voxel_coords: Tensor, num_levels: int) -> None:
        """voxel_coords: (V, 4) int32, checked to be canonical (build_pyramid does)."""
        self._coords = [voxel_coords]
        self._parents = []
        for _ in range(num_levels - 1):
            coarse_coords, parent_of_voxel = halve_coords(self._coords[-1])
            self._coords.append(coarse_coords)
            self._parents.append(parent_of_voxel)
        self._kernel_maps: dict[tuple[int, int], KernelMap] = {}
        self._stride_maps: dict[int, StrideMap] = {}

    @property
    def backend(self) -> SparseBackend:
        return "native"

    @property
    def num_levels(self) -> int:
        return len(self._coords)

    def coords(self, level: int) -> Tensor:
        check_level(level, 0, self.num_levels - 1, "coords")
        return self._coords[level]

    def conv(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        check_level(level, 0, self.num_levels - 1, "conv")
        check_operands(features, weight, len(self._coords[level]), level)
        kernel_size = odd_kernel_size(weight)
        if kernel_size == 1:
            return features @ weight[0]
        return native_functions.submanifold_conv(features, weight, self._kernel_map(level, kernel_size))

    def downsample(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        check_level(level, 0, self.num_levels - 2, "downsample")
        check_strided_weight(weight)
        check_operands(features, weight, len(self._coords[level]), level)
        return native_functions.downsample(features, weight, self._stride_map(level))

    def upsample(self, features: Tensor, weight: Tensor, level: int) -> Tensor:
        check_level(level, 1, self.num_levels - 1, "upsample")
        check_strided_weight(weight)
        check_operands(features, weight, len(self._coords[level]), level)
        return native_functions.upsample(features, weight, self._stride_map(level - 1))

    def _kernel_map(self, level: int, kernel_size: int) -> KernelMap:
        key = (level, kernel_size)
        if key not in self._kernel_maps:
            self._kernel_maps[key] = build_kernel_map(self._coords[level], kernel_size)
        return self._kernel_maps[key]

    def _stride_map(self, fine_level: int) -> StrideMap:
        if fine_level not in self._stride_maps:
            num_coarse = len(self._coords[fine_level + 1])
            stride_map = build_stride_map(self._coords[fine_level], self._parents[fine_level], num_coarse)
            self._stride_maps[fine_level] = stride_map
        return self._stride_maps[fine_level]
