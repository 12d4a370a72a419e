"""A scan of millions of voxels, computed in tiles: the same numbers in memory that does not grow with a layer's width.

Between two levels a layer looks only so far. So a tile of a scan and what lies around it within that reach give the
tile's own part of the result, and everything in between (what is gathered, hidden layers, kernel maps) exists for one
tile at a time. What is computed for the surroundings is computed again in the next tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from t4p.models.sparse.coordinates import KeyGrid
from t4p.models.sparse.pyramid import SparsePyramid, build_pyramid

# Voxels of a tile. The last decoder stage of Res16UNet34C holds some 2.4 kB for each while it computes.
TILE_VOXELS = 2**17


@dataclass(frozen=True)
class Box:
    """Cells of a level from `low` to before `high`, x, y and z, the same in all samples."""

    low: tuple[int, ...]
    high: tuple[int, ...]

    def holds(self, voxel_coords: Tensor, margin: int = 0) -> Tensor:
        """(V,) bool, which of (V, 4) voxels lie in the box or at most `margin` cells beside it."""
        inside = torch.ones(len(voxel_coords), dtype=torch.bool, device=voxel_coords.device)
        for axis, low, high in zip(voxel_coords.unbind(1)[1:], self.low, self.high, strict=True):
            inside &= (axis >= low - margin) & (axis < high + margin)
        return inside

    def halved(self) -> Box:
        """The same box in the cells of the next coarser level; its borders are even."""
        return Box(tuple(low // 2 for low in self.low), tuple(high // 2 for high in self.high))


def is_large(pyramid: SparsePyramid, level: int) -> bool:
    """Whether a level has more voxels than a tile may."""
    return len(pyramid.coords(level)) > TILE_VOXELS


def cut_boxes(voxel_coords: Tensor, most_voxels: int) -> list[Box]:
    """Boxes with even borders that hold every voxel once, cut in two along their longest side until they are small.

    Args:
        voxel_coords: (V, 4) int32 (sample, x, y, z), V at least 1.
        most_voxels: of a box; it holds more only where one cell of the next coarser level does, over all samples.

    Returns:
        At least one; none is empty.
    """
    low, high = voxel_coords[:, 1:].amin(0).tolist(), voxel_coords[:, 1:].amax(0).tolist()
    return _halves(voxel_coords[:, 1:], [at // 2 * 2 for at in low], [at // 2 * 2 + 2 for at in high], most_voxels)


def _halves(xyz: Tensor, low: list[int], high: list[int], most_voxels: int) -> list[Box]:
    """The boxes of (V, 3) voxels, all between `low` and `high`."""
    extents = [above - below for below, above in zip(low, high, strict=True)]
    axis = extents.index(max(extents))
    if len(xyz) <= most_voxels or extents[axis] <= 2:
        return [Box(tuple(low), tuple(high))]
    middle = int(xyz[:, axis].median()) // 2 * 2
    border = min(max(middle, low[axis] + 2), high[axis] - 2)
    is_below = xyz[:, axis] < border
    parts = []
    for part, ends in ((xyz[is_below], (low[axis], border)), (xyz[~is_below], (border, high[axis]))):
        if len(part):
            of_part = [*low], [*high]
            of_part[0][axis], of_part[1][axis] = ends
            parts += _halves(part, *of_part, most_voxels)
    return parts


def in_tiles(
    compute: Callable[..., Tensor],
    pyramid: SparsePyramid,
    inputs: Sequence[tuple[Tensor, int]],
    output_level: int,
    reach: int,
) -> Tensor:
    """The result of a computation between neighbouring levels, tile by tile; nothing is kept for a backward pass.

    Args:
        compute: takes a pyramid of the levels that occur here, and the features of its voxels, as they stand in
            `inputs`; it gives the features (V, C) of the output's level.
        inputs: features (V_l, C_l) and their level.
        output_level: that of the result: of all levels here there are at most two, one beside the other.
        reach: how many voxels of the finest of them away from a voxel its result depends on what is there; even where
            the output is the coarser level.

    Returns:
        (V, C) of the output's level.
    """
    levels = [*(level for _, level in inputs), output_level]
    fine, num_levels = min(levels), max(levels) - min(levels) + 1
    output = None
    for box, rows, local in _tiles(pyramid, fine, num_levels, reach):
        found = compute(local, *(features.index_select(0, rows[level - fine]) for features, level in inputs))
        is_own = (box if output_level == fine else box.halved()).holds(local.coords(output_level - fine))
        if output is None:
            output = found.new_empty(len(pyramid.coords(output_level)), found.shape[1])
        output.index_copy_(0, rows[output_level - fine][is_own], found[is_own])
    assert output is not None  # a pyramid of many voxels has a tile
    return output


def _tiles(
    pyramid: SparsePyramid, fine: int, num_levels: int, reach: int
) -> Iterator[tuple[Box, list[Tensor], SparsePyramid]]:
    """Of every tile: its box in cells of the level `fine`, the rows of each level, and their pyramid."""
    coords = pyramid.coords(fine)
    coarse_coords = pyramid.coords(fine + num_levels - 1)
    grid = KeyGrid.around(coarse_coords, margin=0)
    coarse_keys = grid.keys(coarse_coords)
    for box in cut_boxes(coords, TILE_VOXELS):
        rows = [box.holds(coords, reach).nonzero().squeeze(1)]
        local = build_pyramid(pyramid.backend, coords.index_select(0, rows[0]), num_levels)
        if num_levels == 2:
            rows.append(torch.searchsorted(coarse_keys, grid.keys(local.coords(1))))
        yield box, rows, local
