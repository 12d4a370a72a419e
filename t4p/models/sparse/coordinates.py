"""Voxel coordinates: the canonical row order, integer keys that respect it, halving and doubling the resolution."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class KeyGrid:
    """A box of cells around some voxels that numbers every cell, batch slowest and z fastest.

    The number of a cell is its key: keys ascend exactly as (batch, x, y, z) does, and a step in space is the addition
    of a constant. The margin keeps such steps from wrapping around into another row of the box.

    Attributes:
        origin: (batch, x, y, z) of the cell with key 0.
        shape: cells along (batch, x, y, z), margins included.
    """

    origin: tuple[int, int, int, int]
    shape: tuple[int, int, int, int]

    @classmethod
    def around(cls, voxel_coords: Tensor, margin: int) -> KeyGrid:
        """The smallest box with `margin` free cells on each side in x, y and z.

        Args:
            voxel_coords: (V, 4) integer, batch first; V may be 0.
            margin: cells, at least the longest step that will be added to a key.

        Raises:
            ValueError: the box has more cells than an int64 can number.
        """
        if len(voxel_coords) == 0:
            lowest, highest = [0] * 4, [0] * 4
        else:
            lowest, highest = voxel_coords.amin(0).tolist(), voxel_coords.amax(0).tolist()
        margins = (0, margin, margin, margin)
        batch, x, y, z = (low - m for low, m in zip(lowest, margins, strict=True))
        sizes = [high - low + 1 + 2 * m for low, high, m in zip(lowest, highest, margins, strict=True)]
        grid = cls((batch, x, y, z), (sizes[0], sizes[1], sizes[2], sizes[3]))
        if grid.num_cells > _INT64_MAX:
            raise ValueError(
                f"voxel_coords span {lowest} to {highest} (batch, x, y, z): {grid.num_cells:.1e} cells do not fit into "
                "64-bit keys; drop the outlying points or use larger voxels"
            )
        return grid

    @property
    def num_cells(self) -> int:
        return self.shape[0] * self.shape[1] * self.shape[2] * self.shape[3]

    def key_of_step(self, step_x: int, step_y: int, step_z: int) -> int:
        """What moving by this many cells adds to a key."""
        return (step_x * self.shape[2] + step_y) * self.shape[3] + step_z

    def keys(self, voxel_coords: Tensor) -> Tensor:
        """(V,) int64 keys of coordinates (V, 4) that lie inside the box."""
        batch, x, y, z = (column - low for column, low in zip(voxel_coords.long().unbind(1), self.origin, strict=True))
        return ((batch * self.shape[1] + x) * self.shape[2] + y) * self.shape[3] + z


def check_canonical(voxel_coords: Tensor) -> None:
    """Refuse coordinates that are not int32 (V, 4), unique and in ascending (batch, x, y, z) order.

    A silent sort or unique here would detach the rows from the features the caller holds, which is how
    MinkowskiEngine loses duplicate points without a word.

    Raises:
        ValueError: names the first offending row.
    """
    if voxel_coords.dtype != torch.int32 or voxel_coords.dim() != 2 or voxel_coords.shape[1] != 4:
        raise ValueError(
            f"voxel_coords is {voxel_coords.dtype} of shape {tuple(voxel_coords.shape)}; wanted int32 (V, 4) holding "
            "(batch, x, y, z); floor float coordinates to int32 first"
        )
    if len(voxel_coords) == 0:
        return
    if int(voxel_coords[:, 0].min()) < 0:
        row = int((voxel_coords[:, 0] < 0).nonzero()[0])
        raise ValueError(
            f"voxel_coords row {row} is {voxel_coords[row].tolist()}: the batch index, column 0, is negative"
        )
    keys = KeyGrid.around(voxel_coords, margin=0).keys(voxel_coords)
    offenders = (keys[1:] <= keys[:-1]).nonzero()
    if len(offenders):
        row = int(offenders[0]) + 1
        fault = "repeats" if keys[row] == keys[row - 1] else "comes before"
        raise ValueError(
            f"voxel_coords row {row} {voxel_coords[row].tolist()} {fault} row {row - 1} "
            f"{voxel_coords[row - 1].tolist()}; wanted unique rows in ascending (batch, x, y, z) order, "
            "as torch.unique(voxel_coords, dim=0) returns them"
        )


def halve_coords(voxel_coords: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates at twice the voxel size, and who went where.

    Args:
        voxel_coords: (V, 4) int32, batch first, canonical; x, y, z may be negative.

    Returns:
        coarse_coords: (V', 4) int32 canonical, floor(x / 2), floor(y / 2), floor(z / 2).
        parent_of_voxel: (V,) int64 row of coarse_coords.
    """
    halved = voxel_coords.clone()
    halved[:, 1:] >>= 1  # an arithmetic shift: floors negative numbers too
    keys = KeyGrid.around(halved, margin=0).keys(halved)
    unique_keys, parent_of_voxel = torch.unique(keys, return_inverse=True)
    coarse_coords = halved.new_empty((len(unique_keys), 4))
    coarse_coords[parent_of_voxel] = halved  # all children of a parent write the same row
    return coarse_coords, parent_of_voxel


def double_coords(voxel_coords: Tensor) -> Tensor:
    """All 8 children of every voxel at half the voxel size, whose halved coordinates are these again.

    Args:
        voxel_coords: (V, 4) int32, batch first, canonical.

    Returns:
        (8 V, 4) int32 canonical, 2 x and 2 x + 1, and so on.

    Raises:
        ValueError: a child's coordinate does not fit into int32.
    """
    if len(voxel_coords) and (reach := int(voxel_coords[:, 1:].long().abs().max())) > _INT32_MAX // 2:
        raise ValueError(
            f"voxel_coords reach {reach} voxels from the origin, and twice that does not fit into int32; move the "
            "points near the origin"
        )
    steps = torch.arange(2, dtype=torch.int32, device=voxel_coords.device)
    child = torch.cartesian_prod(steps[:1], steps, steps, steps)
    doubled = voxel_coords * voxel_coords.new_tensor([1, 2, 2, 2])
    children = (doubled[:, None] + child).view(-1, 4)
    return children[torch.argsort(KeyGrid.around(children, margin=0).keys(children))]
