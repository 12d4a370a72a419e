"""Points of one voxel found by sorting packed keys, and sums over them: the same on every device and in every run.

A key holds, from its highest bit: the frame, the voxel's x, y and z, and a place (a pixel) or nothing. Neighbouring
points mostly lie in one voxel: merged before the sort, a third to a half is left of them. Sums are differences of
running sums of integers, exact in any order: no atomics, whose order an accelerator does not promise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from t4p.data.tensors import scalar_beside

MOST_BITS = 63  # keys are positive int64
FIXED_POINT = float(1 << 24)  # units per 1 in running sums of fractions: 0.06 micrometres, a float32's step at 1


@dataclass(frozen=True)
class KeyLayout:
    """How the parts of a key are packed.

    Attributes:
        num_frames: the frame of a key is below; that of a point which counts for nothing is `num_frames` itself.
        xyz_bits: of each coordinate of a voxel.
        place_bits: of what stands behind the voxel.
    """

    num_frames: int
    xyz_bits: tuple[int, int, int]
    place_bits: int

    def __post_init__(self) -> None:
        if self.frame_shift + self.num_frames.bit_length() > MOST_BITS:
            raise ValueError(
                f"{self.num_frames} frames of {' x '.join(f'2^{bits}' for bits in self.xyz_bits)} voxels and "
                f"2^{self.place_bits} pixels do not fit into keys of {MOST_BITS} bits; raise model.voxel_size or lower "
                "data.max_depth"
            )

    @property
    def frame_shift(self) -> int:
        """The bits below the frame."""
        return sum(self.xyz_bits) + self.place_bits

    @property
    def nothing(self) -> int:
        """The key of a point that counts for nothing: behind all others."""
        return self.num_frames << self.frame_shift

    def first_of_frames(self, keys: Tensor) -> Tensor:
        """(F + 1,) int64 the first row of every frame in ascending keys, and that of what counts for nothing."""
        frames = torch.arange(self.num_frames + 1, device=keys.device)
        return torch.searchsorted(keys, frames << self.frame_shift)

    def frames(self, keys: Tensor) -> Tensor:
        """(N,) int64 frame of each key."""
        return keys >> self.frame_shift

    def coords(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) int64 x, y and z of each key."""
        _, y_bits, z_bits = self.xyz_bits
        xyz = keys >> self.place_bits
        x = (xyz >> (y_bits + z_bits)) & _mask(self.xyz_bits[0])
        return x, (xyz >> z_bits) & _mask(y_bits), xyz & _mask(z_bits)

    def places(self, keys: Tensor) -> Tensor:
        """(N,) int64 what stands behind the voxel."""
        return keys & _mask(self.place_bits)

    def pack_cells(self, cells: Sequence[Tensor], low: Sequence[int]) -> Tensor:
        """int64 keys, without frame and place yet, of voxel coordinates.

        Args:
            cells: x, y and z, each int32 of one shape, at least `low`.
        """
        _, y_bits, z_bits = self.xyz_bits
        # In 32 bits where they suffice, which costs a third; what overflows on the way comes back with the last term.
        x, y, z = cells if sum(self.xyz_bits) < 32 else [cell.long() for cell in cells]
        packed = ((x << (y_bits + z_bits)) + (y << z_bits)) + z
        offset = (low[0] << (y_bits + z_bits)) + (low[1] << z_bits) + low[2]
        if packed.dtype == torch.int32:
            offset = (offset + (1 << 31)) % (1 << 32) - (1 << 31)
        return (packed - offset).long() << self.place_bits

    def packed(self, frames: Tensor, coords: Sequence[Tensor], places: Tensor) -> Tensor:
        """(N,) int64 keys of (N,) int64 parts."""
        return self.pack_cells(coords, (0, 0, 0)) + (frames << self.frame_shift) + places


@dataclass(frozen=True, eq=False)
class Tally:
    """Points counted by key: single ones, runs of neighbours, or all of a key. Sums may wrap round on the way to them.

    Attributes:
        keys: (R,) int64.
        num_points: (R,) int64.
        sums: of each of several values of points, (R,) int64.
    """

    keys: Tensor
    num_points: Tensor
    sums: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Groups:
    """Neighbours in an ascending list that are equal.

    Attributes:
        bounds: (G + 1,) int64 row of the first of each, and the row behind all.
        of_row: (R,) int64 the group of each row.
        num_of_frame: groups of each frame, on the host.
    """

    bounds: Tensor
    of_row: Tensor
    num_of_frame: list[int]

    def sums(self, values: Tensor) -> Tensor:
        """(G,) int64 sums of (R,) integers, which may wrap round on the way."""
        return sums_between(values, self.bounds)

    def firsts(self, values: Tensor) -> Tensor:
        """(G,) what the first row of each has of (R,) values."""
        return values[self.bounds[:-1]]


def merge_neighbours(points: Tally) -> Tally:
    """Make one of neighbours with equal keys, among single points. Waits for the device."""
    first = differs_from_last(points.keys).nonzero().squeeze(1)
    bounds = torch.cat([first, first.new_full((1,), len(points.keys))])
    return Tally(points.keys[first], bounds[1:] - first, tuple(sums_between(values, bounds) for values in points.sums))


def joined(parts: Sequence[Tally]) -> Tally:
    """One after the other."""
    return Tally(
        torch.cat([part.keys for part in parts]),
        torch.cat([part.num_points for part in parts]),
        tuple(torch.cat(values) for values in zip(*(part.sums for part in parts), strict=True)),
    )


def merge_equal(tally: Tally, layout: KeyLayout) -> tuple[Tally, list[int]]:
    """Sort by key and make one of equal ones; what counts for nothing is left out. Waits for the device once.

    Returns:
        The merged tally, ascending; and its rows of each frame, on the host.
    """
    by_key = torch.sort(tally.keys)
    (groups,) = group((by_key.values,), layout.first_of_frames(by_key.values))
    merged = Tally(
        groups.firsts(by_key.values),
        groups.sums(tally.num_points[by_key.indices]),
        tuple(groups.sums(values[by_key.indices]) for values in tally.sums),
    )
    return merged, groups.num_of_frame


def group(lists: Sequence[Tensor], first_of_frames: Tensor) -> list[Groups]:
    """The groups in each of several ascending lists; waits for the device once, for all.

    Args:
        lists: each (R,) int64.
        first_of_frames: (F + 1,) int64 the first row of every frame, the same in all lists, and that behind all.
    """
    are_first = [differs_from_last(keys) for keys in lists]
    counted = [running_sum(is_first) for is_first in are_first]
    nums_before = torch.stack([each[first_of_frames] for each in counted]).tolist()
    return [
        Groups(
            bounds=torch.cat([rows_where(is_first, before[-1]), first_of_frames[-1:]]),
            of_row=running[1:] - 1,
            num_of_frame=[behind - at for at, behind in pairwise(before)],
        )
        for is_first, running, before in zip(are_first, counted, nums_before, strict=True)
    ]


def differs_from_last(keys: Tensor) -> Tensor:
    """(N,) bool: whether a key is not that before it; true for the first."""
    differs = torch.ones_like(keys, dtype=torch.bool)
    torch.ne(keys[1:], keys[:-1], out=differs[1:])
    return differs


def running_sum(values: Tensor) -> Tensor:
    """(N + 1,) int64 sums of the (N,) integers before each place."""
    sums = values.new_zeros(len(values) + 1, dtype=torch.int64)
    torch.cumsum(values, 0, dtype=torch.int64, out=sums[1:])
    return sums


def sums_between(values: Tensor, bounds: Tensor) -> Tensor:
    """(G,) int64 sums of the (N,) integers from each of the (G + 1,) rows to before the next."""
    running = running_sum(values)[bounds]
    return running[1:] - running[:-1]


def rows_where(flags: Tensor, num: int) -> Tensor:
    """(num,) int64: the first `num` rows that are true, of at least as many, without waiting for the device."""
    if flags.device.type == "cpu":
        return flags.nonzero()[:num].squeeze(1)  # at a third less than what follows
    return torch.nonzero_static(flags, size=num).squeeze(1)


def cells_along(axis: Tensor, voxel_size: float, shift: float) -> Tensor:
    """int32 voxel of float32 metres along one axis.

    The division is rounded alike on all devices, which a product with the reciprocal and a sum in one is not: points
    lie on the border of two voxels in whole planes, since depth comes in millimetres.
    """
    return torch.floor_(axis / scalar_beside(axis, voxel_size) + shift).int()


def _mask(bits: int) -> int:
    return (1 << bits) - 1
