"""Masks of overlapping pieces: what is one object is joined, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from t4p.models.sparse.tiles import Box, cut_boxes
from t4p.tasks import pieces
from t4p.tasks.pieces import Mask, Piece, cut_pieces, join_masks


def piece(seen: range, own: range, *masks: tuple[range, int, float]) -> Piece:
    """Of voxels along a line."""
    rows = np.array(seen)
    found = (Mask(np.array(voxels), class_id, score) for voxels, class_id, score in masks)
    return Piece(rows, (rows >= own.start) & (rows < own.stop), tuple(found))


def said(masks: tuple[Mask, ...]) -> list[tuple[int, int, int, float]]:
    """First and last voxel, class and score of each."""
    assert all(np.array_equal(mask.voxels, np.unique(mask.voxels)) for mask in masks)
    return [(int(mask.voxels[0]), int(mask.voxels[-1]), mask.class_id, round(mask.score, 6)) for mask in masks]


LEFT, RIGHT = (range(60), range(50)), (range(40, 100), range(50, 100))


def test_an_object_across_a_border_is_one_with_the_mean_of_the_scores_by_voxels() -> None:
    found = join_masks([piece(*LEFT, (range(30, 60), 1, 0.9)), piece(*RIGHT, (range(40, 70), 1, 0.6))], 100)
    assert said(found) == [(30, 69, 1, 0.75)]


@pytest.mark.parametrize(
    ("of_left", "of_right", "wanted"),
    [
        # Another class: both stay, the surer first.
        ((range(30, 60), 1, 0.5), (range(40, 80), 2, 0.7), [(40, 79, 2, 0.7), (30, 59, 1, 0.5)]),
        # They hardly share what both pieces see.
        ((range(10, 44), 1, 0.7), (range(42, 80), 1, 0.5), [(10, 43, 1, 0.7), (42, 79, 1, 0.5)]),
        # What lies mostly beside its piece and is not seen alike by the other is left out.
        ((range(48, 60), 1, 0.7), (range(52, 80), 2, 0.5), [(52, 79, 2, 0.5)]),
        # Both see it whole.
        ((range(45, 58), 1, 0.7), (range(45, 58), 1, 0.5), [(45, 57, 1, 0.6)]),
        # Neither reaches into what is shared.
        ((range(20), 1, 0.7), (range(70, 80), 1, 0.8), [(70, 79, 1, 0.8), (0, 19, 1, 0.7)]),
    ],
)
def test_two_masks_are_joined_where_both_pieces_say_the_same(of_left, of_right, wanted) -> None:
    pair = [piece(*LEFT, of_left), piece(*RIGHT, of_right)]
    assert said(join_masks(pair, 100)) == wanted
    assert sorted(said(join_masks(pair[::-1], 100))) == sorted(wanted)


def test_two_masks_of_one_piece_stay_apart_and_the_more_alike_is_joined() -> None:
    left = piece(*LEFT, (range(40, 60), 1, 0.9), (range(40, 56), 1, 0.8))
    right = piece(*RIGHT, (range(40, 57), 1, 0.5))
    joined = (16 * 0.8 + 17 * 0.5) / 33
    assert said(join_masks([left, right], 100)) == [(40, 59, 1, 0.9), (40, 56, 1, round(joined, 6))]


@pytest.mark.parametrize("seed", range(10))
def test_objects_that_every_piece_sees_exactly_are_found_once_each(seed: int) -> None:
    """In space, cut by the boxes of scans: whatever the pieces, their join is the truth."""
    rng = np.random.default_rng(seed)
    coords = torch.unique(torch.from_numpy(rng.integers(0, 60, (4000, 3))).int(), dim=0)
    coords = torch.nn.functional.pad(coords, (1, 0))
    object_of_voxel = (coords[:, 1:] // 8).long() @ torch.tensor([64, 8, 1])  # cubes of 8
    found = []
    for box in cut_boxes(coords, 500):
        seen = box.holds(coords, 8).nonzero().squeeze(1)
        of_seen = object_of_voxel[seen]
        masks = [Mask(seen[of_seen == name].numpy(), int(name) % 3, rng.random()) for name in of_seen.unique()]
        found.append(Piece(seen.numpy(), box.holds(coords[seen]).numpy(), tuple(masks)))
    joined = join_masks(found, len(coords))
    labels = np.full(len(coords), -1)
    for mask in joined:
        (name,) = set(object_of_voxel[mask.voxels].tolist())
        assert mask.class_id == name % 3
        assert (labels[mask.voxels] == -1).all()
        labels[mask.voxels] = name
    np.testing.assert_array_equal(labels, object_of_voxel.numpy())
    assert [mask.score for mask in joined] == sorted((mask.score for mask in joined), reverse=True)


def test_a_small_scan_is_one_piece_and_that_is_returned_as_it_was_found() -> None:
    coords = torch.zeros(5, 4, dtype=torch.int32)
    coords[:, 3] = torch.arange(5)
    ((seen, is_own),) = cut_pieces(coords, 0.02)
    assert seen.tolist() == [0, 1, 2, 3, 4]
    assert is_own.all()
    whole = piece(range(5), range(5), (range(2), 0, 0.9), (range(4), 1, 0.9), (range(2, 3), 0, 0.1))
    assert said(join_masks([whole], 5)) == said(whole.masks)
    assert join_masks([replace(whole, masks=())], 5) == ()


def test_pieces_see_a_metre_beyond_their_own_which_are_all_voxels_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_VOXELS", 400)
    rng = np.random.default_rng(0)
    coords = torch.unique(torch.from_numpy(rng.integers(0, 90, (3000, 4))).int() * torch.tensor([0, 1, 1, 1]), dim=0)
    own = torch.zeros(len(coords), dtype=torch.int64)
    for seen, is_own in cut_pieces(coords.int(), 0.1):
        own[seen[is_own]] += 1
        low, high = coords[seen[is_own], 1:].amin(0).tolist(), coords[seen[is_own], 1:].amax(0).tolist()
        near = Box(tuple(low), tuple(at + 1 for at in high)).holds(coords, 10)
        assert set(near.nonzero().squeeze(1).tolist()) <= set(seen.tolist())
    assert (own == 1).all()
