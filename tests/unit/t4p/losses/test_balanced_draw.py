"""The draw of pairs by the density of their CLIP features, over hundreds of frames."""

from __future__ import annotations

import math

import pytest
import torch

from t4p.losses.balanced_draw import DENSITY_TEMPERATURE, draw_balanced

GRID = (3, 4)
NUM_CELLS = 12


def random_frames(seed, num_frames, dim=5):
    """Features, and pairs that are ascending by frame as a batch has them; some frames have none."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num_frames, dim, *GRID, generator=generator)
    counts = torch.randint(0, 30, (num_frames,), generator=generator)
    frame = torch.repeat_interleave(torch.arange(num_frames), counts)
    cells = frame * NUM_CELLS + torch.randint(0, NUM_CELLS, frame.shape, generator=generator)
    uniforms = 1 - torch.rand(frame.shape, generator=generator)
    return features, cells, uniforms, counts


@pytest.mark.parametrize("seed", range(200))
def test_it_draws_rows_of_each_frame_whatever_the_other_frames_are(seed):
    features, cells, uniforms, counts = random_frames(seed, num_frames=seed % 4)
    at_most, balance = 1 + seed % 13, (0.0, 0.5, 1.0)[seed % 3]
    drawn = draw_balanced(features, cells, uniforms, at_most, balance)
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == sum(min(at_most, count) for count in counts.tolist())
    start, alone = 0, []
    for frame, count in enumerate(counts.tolist()):
        rows = slice(start, start + count)
        own = draw_balanced(
            features[frame : frame + 1], cells[rows] - frame * NUM_CELLS, uniforms[rows], at_most, balance
        )
        alone += (own + start).tolist()
        start += count
    assert drawn.tolist() == alone


def test_without_balance_the_largest_lots_win():
    features, cells, uniforms, _ = random_frames(3, 1)
    assert draw_balanced(features, cells, uniforms, 4, 0.0).tolist() == sorted(uniforms.argsort()[-4:].tolist())


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_first_draw_has_the_weight_of_its_density(balance):
    """Ten cells alike and two alone, all orthogonal: densities by hand, frequencies over 2,000 draws of one pair."""
    features = torch.zeros(1, 3, 12)
    features[0, 0, :10] = features[0, 1, 10] = features[0, 2, 11] = 1
    features = features.reshape(1, 3, *GRID)
    alike = math.exp(1 / DENSITY_TEMPERATURE)
    density = torch.tensor([10 * alike + 2] * 10 + [alike + 11] * 2)
    wanted = density**-balance / (density**-balance).sum()
    generator = torch.Generator().manual_seed(0)
    trials = 2000
    cells = torch.arange(NUM_CELLS)
    uniforms = 1 - torch.rand(trials, NUM_CELLS, generator=generator)
    found = torch.zeros(NUM_CELLS)
    for row in uniforms:
        found[draw_balanced(features, cells, row, 1, balance)] += 1
    assert (found / trials - wanted).abs().max() < 0.04
    assert wanted[10] / wanted[0] == pytest.approx(((10 * alike + 2) / (alike + 11)) ** balance)


def test_autocast_changes_nothing():
    features, cells, uniforms, _ = random_frames(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = draw_balanced(features, cells, uniforms, 5, 1.0)
    assert torch.equal(drawn, draw_balanced(features, cells, uniforms, 5, 1.0))


def test_half_precision_features_and_the_smallest_lots_are_fine():
    features, cells, uniforms, _ = random_frames(1, 2)
    uniforms[::2] = torch.finfo(torch.float32).tiny
    drawn = draw_balanced(features.bfloat16(), cells, uniforms, 5, 1.0)
    assert len(drawn) == len(set(drawn.tolist())) > 0
