"""Draws by hashing: pinned, uniform, and the smallest words of every frame."""

import numpy as np
import torch

from t4p.data.hashing import draw_words, normals_of, smallest_of_frames, uniforms_of

MANY = torch.arange(100_000)


def words(seed: int) -> torch.Tensor:
    return draw_words(torch.full_like(MANY, seed), MANY)


def test_golden_words():
    found = draw_words(torch.tensor([1, 1, -5]), torch.tensor([2, 3, -7]), torch.tensor([0, 0, 2**62]))
    assert found.tolist() == [-4841935175369521001, 7235116703822611636, -2592344196735756632]


def test_words_are_splitmix64_of_seed_and_code():
    """The generator of Steele, Lea and Flood, in Python's integers."""
    mask = (1 << 64) - 1
    for seed, code in ((0, 0), (1, 2), (2**63 - 1, 12345), (-1, -(2**63))):
        z = ((seed ^ code) + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        assert int(draw_words(torch.tensor([seed]), torch.tensor([code]))) & mask == z


def test_uniforms_of_neighbouring_codes_are_uniform_and_do_not_depend_on_each_other():
    values = [uniforms_of(words(seed)).numpy() for seed in (0, 1)]
    for each in values:
        assert each.min() > 0
        assert each.max() <= 1
        counts, _ = np.histogram(each, bins=20, range=(0, 1))
        assert abs(counts / 5000 - 1).max() < 0.06
        assert abs(np.corrcoef(each[:-1], each[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(*values)[0, 1]) < 0.01


def test_normals_are_normal_and_independent():
    one, other = (each.double().numpy() for each in normals_of(words(3)))
    for each in (one, other):
        assert abs(each.mean()) < 0.01
        assert abs(each.std() - 1) < 0.01
        assert abs((each**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.01
    assert abs(np.corrcoef(one**2, other**2)[0, 1]) < 0.01


def test_the_smallest_of_every_frame_are_kept_in_order():
    frames = torch.tensor([0] * 50 + [2] * 7 + [3] * 60)
    drawn = draw_words(torch.zeros_like(frames), torch.arange(len(frames)))
    kept = smallest_of_frames(drawn, frames, [50, 0, 7, 60], 10)
    assert torch.equal(kept, kept.sort().values)
    unsigned = drawn.numpy().view(np.uint64)
    for frame, wanted in ((0, 10), (2, 7), (3, 10)):
        own = np.flatnonzero(frames.numpy() == frame)
        smallest = own[np.argsort(unsigned[own])[:wanted]]
        assert set(smallest.tolist()) == set(kept[frames[kept] == frame].tolist())
