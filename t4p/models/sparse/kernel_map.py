"""Which voxels meet under a kernel: neighbours of a submanifold convolution, children of a strided one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from t4p.models.sparse.coordinates import KeyGrid

# A lookup table over the bounding box is 4 times faster than searching (20,620 voxels of a real frame at 2 cm: 3.8 ms
# against 17 ms for kernel 3, 13 against 57 for kernel 5; 98 cells per voxel) but its size follows the box, not the
# voxels: one stray point far away must not allocate gigabytes. 2**25 int32 cells are 128 MiB.
MAX_TABLE_CELLS = 2**25
MAX_TABLE_CELLS_PER_VOXEL = 1024


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Neighbours of every voxel under an odd cubic kernel.

    Attributes:
        kernel_size: K, odd.
        neighbours: (V, K^3) int32, row of the voxel at each kernel offset, V where there is none. Offsets in z, y, x
            order: index (dz * K + dy) * K + dx.
    """

    kernel_size: int
    neighbours: Tensor

    @property
    def num_voxels(self) -> int:
        return self.neighbours.shape[0]

    @cached_property
    def pairs(self) -> tuple[tuple[Tensor, Tensor] | None, ...]:
        """Per offset the (source rows, target rows) that meet, None at the centre, where every row meets itself.

        Within one offset no row occurs twice on either side: an index_add_ over it has no collisions, so it is
        deterministic on every device.
        """
        half = self.kernel_size**3 // 2
        present = (self.neighbours[:, :half] < self.num_voxels).t()
        counts = present.sum(1).tolist()
        offset_index, target_rows = present.nonzero(as_tuple=True)
        source_rows = self.neighbours[target_rows, offset_index]
        before = list(zip(source_rows.split(counts), target_rows.int().split(counts), strict=True))
        # The offset opposite to k is K^3 - 1 - k and pairs the same rows the other way around.
        after = [(target, source) for source, target in reversed(before)]
        return (*before, None, *after)


def build_kernel_map(voxel_coords: Tensor, kernel_size: int) -> KernelMap:
    """Find the neighbours of canonical voxels (V, 4) by table where its box is affordable, else by search."""
    grid = KeyGrid.around(voxel_coords, margin=kernel_size // 2)
    affordable = min(MAX_TABLE_CELLS, MAX_TABLE_CELLS_PER_VOXEL * len(voxel_coords))
    find = neighbours_by_table if grid.num_cells <= affordable else neighbours_by_search
    return KernelMap(kernel_size, find(grid, grid.keys(voxel_coords), kernel_size))


def neighbours_by_table(grid: KeyGrid, keys: Tensor, kernel_size: int) -> Tensor:
    """Look every neighbour up in a table of all cells of the box.

    Args:
        grid: box around the voxels with a margin of at least kernel_size // 2.
        keys: (V,) int64, strictly ascending.
        kernel_size: K, odd.

    Returns:
        (V, K^3) int32, as KernelMap.neighbours.
    """
    num_voxels, radius = len(keys), kernel_size // 2
    row_of_cell = torch.full((grid.num_cells,), num_voxels, dtype=torch.int32, device=keys.device)
    row_of_cell[keys] = torch.arange(num_voxels, dtype=torch.int32, device=keys.device)
    neighbours = row_of_cell.new_empty((kernel_size**3, num_voxels))
    steps = range(-radius, radius + 1)
    offset_steps = [(x, y, z) for z in steps for y in steps for x in steps]
    for row_of_neighbour, step in zip(neighbours, offset_steps, strict=True):
        torch.index_select(row_of_cell, 0, keys + grid.key_of_step(*step), out=row_of_neighbour)
    return neighbours.t().contiguous()


def neighbours_by_search(grid: KeyGrid, keys: Tensor, kernel_size: int) -> Tensor:
    """The same answer as neighbours_by_table in memory that does not depend on the box.

    z is fastest in the keys, so the K neighbours along z stand next to each other in the sorted keys: one binary
    search per (x, y) offset finds where their run starts and K comparisons walk along it.
    """
    num_voxels, radius = len(keys), kernel_size // 2
    neighbours = torch.empty((kernel_size,) * 3 + (num_voxels,), dtype=torch.int32, device=keys.device)
    padded_keys = torch.cat([keys, keys.new_full((1,), -1)])  # -1 is no cell's key
    for y_index in range(kernel_size):
        for x_index in range(kernel_size):
            first_key = keys + grid.key_of_step(x_index - radius, y_index - radius, -radius)
            row = torch.searchsorted(keys, first_key)
            for z_index in range(kernel_size):
                found = padded_keys[row] == first_key + z_index
                neighbours[z_index, y_index, x_index] = torch.where(found, row, num_voxels)
                row = row + found
    return neighbours.view(kernel_size**3, num_voxels).t().contiguous()


@dataclass(frozen=True, eq=False)
class StrideMap:
    """Parents and children between a level and the next coarser one (kernel 2, stride 2).

    Voxels are listed grouped by which of the 8 children of their parent they are, dz * 4 + dy * 2 + dx.

    Attributes:
        num_fine, num_coarse: voxels of the two levels.
        fine_rows: (num_fine,) int64, all fine rows, grouped.
        coarse_rows: (num_fine,) int64, the parents of fine_rows; within a group no parent occurs twice.
        group_sizes: voxels in each of the 8 groups.
    """

    num_fine: int
    num_coarse: int
    fine_rows: Tensor
    coarse_rows: Tensor
    group_sizes: tuple[int, ...]


def build_stride_map(fine_coords: Tensor, parent_of_voxel: Tensor, num_coarse: int) -> StrideMap:
    """Group canonical voxels (V, 4) by child position; parent_of_voxel (V,) as halve_coords returns it."""
    low_bits = fine_coords[:, 1:].long() & 1
    child_index = low_bits[:, 0] + 2 * low_bits[:, 1] + 4 * low_bits[:, 2]
    fine_rows = torch.argsort(child_index, stable=True)
    group_sizes = tuple(torch.bincount(child_index, minlength=8).tolist())
    return StrideMap(len(fine_coords), num_coarse, fine_rows, parent_of_voxel[fine_rows], group_sizes)
