"""Objects of a scan that is larger than a head has learnt to see: found in overlapping pieces, and joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from t4p.models.sparse.tiles import cut_boxes

PIECE_VOXELS = 2**18  # of a scan that is looked at whole, and of a piece without what it shares with others
OVERLAP = 1.0  # metres that a piece sees beyond its borders: an object that is no larger lies whole in one of them
SAME_FROM = 0.5  # IoU, among the voxels that both pieces see, from which two masks are of one object


@dataclass(frozen=True, eq=False)
class Mask:
    """One object.

    Attributes:
        voxels: (n,) int64 rows of the scan's voxels, ascending.
        class_id: row of the labels.
        score: in [0, 1].
    """

    voxels: NDArray[np.int64]
    class_id: int
    score: float


@dataclass(frozen=True, eq=False)
class Piece:
    """What was found in a part of a scan.

    Attributes:
        seen: (S,) int64 rows of the scan's voxels that were looked at.
        is_own: (S,) bool: those that are no other piece's own; the rest is the surroundings.
        masks: over voxels that were seen.
    """

    seen: NDArray[np.int64]
    is_own: NDArray[np.bool_]
    masks: tuple[Mask, ...]


def cut_pieces(voxel_coords: Tensor, voxel_size: float) -> Iterator[tuple[Tensor, Tensor]]:
    """What each piece of a scan sees: (S,) int64 ascending rows of its voxels, and (S,) bool which are its own.

    Args:
        voxel_coords: (V, 4) int32 (sample, x, y, z) of one scan, canonical.
        voxel_size: metres.
    """
    if len(voxel_coords) <= PIECE_VOXELS:
        rows = torch.arange(len(voxel_coords), device=voxel_coords.device)
        yield rows, torch.ones_like(rows, dtype=torch.bool)
        return
    for box in cut_boxes(voxel_coords, PIECE_VOXELS):
        seen = box.holds(voxel_coords, round(OVERLAP / voxel_size)).nonzero().squeeze(1)
        yield seen, box.holds(voxel_coords[seen])


def join_masks(pieces: Sequence[Piece], num_voxels: int) -> tuple[Mask, ...]:
    """The objects of a scan, the surest first.

    Masks of two pieces are of one object where their class is the same and their IoU is SAME_FROM or more among the
    voxels that both pieces see; the most alike are joined first, and of one piece no two masks come together. An object
    has the voxels of all its masks, and the mean of their scores, each counted by its voxels. A mask that is joined to
    none and lies mostly in the surroundings of its piece is left out: the piece whose own those voxels are saw more.

    Args:
        num_voxels: of the scan.
    """
    masks = [mask for piece in pieces for mask in piece.masks]
    piece_of_mask = np.repeat(np.arange(len(pieces)), [len(piece.masks) for piece in pieces]).tolist()
    object_of_mask = list(range(len(masks)))
    masks_of = {place: [place] for place in object_of_mask}
    for _, first, second in sorted(_links(pieces, num_voxels), key=lambda link: -link[0]):
        one, other = object_of_mask[first], object_of_mask[second]
        if {piece_of_mask[place] for place in masks_of[one]} & {piece_of_mask[place] for place in masks_of[other]}:
            continue
        for place in masks_of[other]:
            object_of_mask[place] = one
        masks_of[one] += masks_of.pop(other)
    found = []
    for places in masks_of.values():
        parts = [masks[place] for place in places]
        if len(parts) == 1 and not _is_own(parts[0], pieces[piece_of_mask[places[0]]]):
            continue
        voxels = np.unique(np.concatenate([part.voxels for part in parts]))
        score = np.average([part.score for part in parts], weights=[len(part.voxels) for part in parts])
        found.append(Mask(voxels, parts[0].class_id, float(score)))
    return tuple(sorted(found, key=lambda mask: -mask.score))


def _is_own(mask: Mask, piece: Piece) -> bool:
    """Whether half of the voxels of a mask or more are its piece's own."""
    return bool(2 * piece.is_own[np.searchsorted(piece.seen, mask.voxels)].sum() >= len(mask.voxels))


def _links(pieces: Sequence[Piece], num_voxels: int) -> list[tuple[float, int, int]]:
    """IoU and places, counted over all pieces, of every two masks that may be of one object."""
    starts = np.cumsum([0, *(len(piece.masks) for piece in pieces)])
    links = []
    for index, first in enumerate(pieces):
        is_seen = np.zeros(num_voxels, bool)
        is_seen[first.seen] = True
        for other_index, second in enumerate(pieces[index + 1 :], index + 1):
            shared = second.seen[is_seen[second.seen]]
            if len(shared) and first.masks and second.masks:
                overlap = _overlaps(first.masks, second.masks, shared)
                for row, column in np.argwhere(overlap >= SAME_FROM):
                    place = int(starts[index] + row), int(starts[other_index] + column)
                    links.append((float(overlap[row, column]), *place))
    return links


def _overlaps(first: Sequence[Mask], second: Sequence[Mask], shared: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P, Q) IoU of masks among the voxels `shared`, ascending rows; 0 where the classes differ."""
    one, other = _among(first, shared), _among(second, shared)
    common = (one @ other.T).toarray()
    either = one.sum(axis=1)[:, None] + other.sum(axis=1)[None] - common
    alike = np.equal.outer([mask.class_id for mask in first], [mask.class_id for mask in second])
    return alike * common / np.maximum(either, 1)


def _among(masks: Sequence[Mask], shared: NDArray[np.int64]) -> Any:
    """A sparse matrix (P, S) of 0 and 1: which of the shared voxels each mask has."""
    from scipy.sparse import csr_array  # slow to import, and most scans are looked at whole

    columns = []
    for mask in masks:
        place = np.searchsorted(shared, mask.voxels)
        hit = shared[np.minimum(place, len(shared) - 1)] == mask.voxels
        columns.append(place[hit])
    ends = np.cumsum([0, *map(len, columns)])
    return csr_array((np.ones(ends[-1]), np.concatenate(columns), ends), shape=(len(masks), len(shared)))
