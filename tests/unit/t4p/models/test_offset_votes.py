import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from t4p.data.labels import IGNORED
from t4p.models.offset_votes import cluster_votes, vote_loss


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_vote_loss_is_the_mean_miss_plus_the_mean_turn():
    offsets, points, centers = draw(20, 3).requires_grad_(), draw(20, 3, seed=1), draw(20, 3, seed=2)
    has_instance = torch.arange(20) % 3 > 0
    misses = [
        (offsets[row] - (centers - points)[row]).abs().sum()
        + 1
        - F.cosine_similarity(offsets[row], (centers - points)[row], dim=0)
        for row in range(20)
        if row % 3
    ]
    centers[~has_instance] = torch.nan
    loss = vote_loss(offsets, points, centers, has_instance)
    torch.testing.assert_close(loss, sum(misses) / len(misses))
    assert (
        vote_loss(
            (centers - points)[has_instance], points[has_instance], centers[has_instance], has_instance[has_instance]
        )
        < 1e-12
    )
    loss.backward()
    assert torch.isfinite(offsets.grad).all()
    assert not offsets.grad[~has_instance].any()


@pytest.mark.parametrize("num_voxels", [0, 4])
def test_no_instance_anywhere_is_a_loss_of_zero_that_can_be_differentiated(num_voxels):
    offsets = torch.zeros(num_voxels, 3, requires_grad=True)
    loss = vote_loss(offsets, offsets.detach(), offsets.detach(), torch.zeros(num_voxels, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not offsets.grad.any()


def test_votes_that_begin_at_zero_have_gradients_within_bounds():
    # A head of zeros: the direction of nothing.
    offsets = torch.zeros(1, 3, requires_grad=True)
    vote_loss(offsets, torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([True])).backward()
    assert offsets.grad.tolist() == [[0, 0, -101]]  # 1 of the distance, 1 / 0.01 m of the direction


def chairs(votes):
    """Two chairs of 50 voxels within 10 cm of (0, 0, 0) and (0.3, 0, 0), a table where the first stands, and dust."""
    rng = np.random.default_rng(0)
    centers = np.array([[0.0, 0, 0], [0.3, 0, 0], [0, 0, 0]])
    instance = np.repeat([0, 1, 2], 50)
    points = centers[instance] + rng.uniform(-0.1, 0.1, (150, 3))
    offsets = votes * (centers[instance] - points)
    dust = rng.uniform(5, 9, (30, 3))
    points, offsets = np.concatenate([points, dust]), np.concatenate([offsets, 0 * dust])
    labels = np.concatenate([np.array([4, 4, 7])[instance], np.repeat([4, IGNORED], 15)])
    probability = np.concatenate([np.array([0.5, 0.9, 0.7])[instance], np.ones(30)])
    parts = (torch.from_numpy(part) for part in (points, offsets, labels, probability))
    return (*parts, np.concatenate([instance, np.full(30, -1)]))


def test_votes_part_what_stands_together_and_labels_what_lies_in_one_place():
    points, offsets, labels, probability, instance = chairs(votes=0.9)
    masks, class_ids, scores = cluster_votes(points, offsets, labels, probability, 0.05, 10)
    assert class_ids.tolist() == [4, 7, 4]
    assert scores.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert np.array_equal(masks.numpy(), instance == np.array([[1], [2], [0]]))
    # Without the votes, a radius that joins the voxels of a chair joins the two chairs.
    masks, _, _ = cluster_votes(points, 0 * offsets, labels, probability, 0.15, 10)
    assert masks.sum(1).tolist() == [50 + 50, 50] or masks.sum(1).tolist() == [50, 50 + 50]


def test_small_clusters_are_left_out_and_nothing_gives_nothing():
    points, offsets, labels, probability, _ = chairs(votes=1.0)
    assert len(cluster_votes(points, offsets, labels, probability, 0.05, 51)[0]) == 0
    assert len(cluster_votes(points, offsets, labels, probability, 0.05, 1)[0]) == 3 + 15
    surest = cluster_votes(points, offsets, labels, probability, 0.05, 10, 2)
    assert surest[0].shape == (2, 180)
    assert surest[2].tolist() == pytest.approx([0.9, 0.7])
    masks, class_ids, scores = cluster_votes(points[:0], offsets[:0], labels[:0], probability[:0], 0.05, 1)
    assert (masks.shape, class_ids.shape, scores.shape) == ((0, 0), (0,), (0,))
    assert cluster_votes(points, offsets, labels * 0 + IGNORED, probability, 0.05, 1)[0].shape == (0, 180)


@pytest.mark.parametrize("seed", range(3))
def test_voxels_in_cells_of_their_own_are_joined_by_steps_of_the_radius(seed):
    # On a lattice of 0.6 radii: neighbours along a face's diagonal (0.85) are within reach, along a cube's (1.04) not.
    rng = np.random.default_rng(seed)
    cells = np.argwhere(rng.random((7, 7, 7)) < 0.25)
    near = (np.square(cells[:, None] - cells).sum(2) <= 2).astype(int)
    reach = near
    for _ in range(math.ceil(math.log2(len(cells)))):
        reach = ((reach @ reach) > 0).astype(int)
    wanted = {tuple(row) for row in reach.astype(bool).tolist()}
    points = torch.from_numpy(0.03 * cells + 0.001)
    zeros = torch.zeros(len(cells), dtype=torch.int64)
    masks, _, _ = cluster_votes(points, 0 * points, zeros, zeros + 1.0, 0.05, 1)
    assert {tuple(row) for row in masks.tolist()} == wanted
    assert len(masks) == len(wanted) > 1


def test_all_voxels_in_one_place_are_no_more_work_than_apart():
    # Pairs of them would be 5 thousand million.
    offsets = -draw(100_000, 3)
    zeros = torch.zeros(100_000, dtype=torch.int64)
    masks, _, _ = cluster_votes(-offsets, offsets, zeros, zeros + 1.0, 0.03, 100)
    assert masks.shape == (1, 100_000)
    assert masks.all()


def test_a_vote_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        cluster_votes(torch.zeros(1, 3), torch.full((1, 3), torch.nan), torch.zeros(1).long(), torch.ones(1), 0.03, 1)
