"""The IoU of turned boxes against clipping one polygon by another, and where boxes touch in awkward ways."""

import math

import pytest
import torch

from t4p.losses.oriented_iou import paired_iou


def random_boxes(seed, count=40, yaw=True):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(count, 3, generator=generator, dtype=torch.float64) / 2
    sizes = 0.2 + 1.5 * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    angles = 7 * (torch.rand(count, 1, generator=generator, dtype=torch.float64) - 0.5) * yaw
    return torch.cat([centers, sizes, angles], dim=1)


def corners_of(box):
    x, y, _, width, depth, _, yaw = box
    cos, sin = math.cos(yaw), math.sin(yaw)
    signs = ((1, 1), (-1, 1), (-1, -1), (1, -1))
    halves = [(i * width / 2, j * depth / 2) for i, j in signs]
    return [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in halves]


def clipped(polygon, start, end):
    """What of a polygon lies to the left of a line."""
    kept = []
    sides = [(end[0] - start[0]) * (y - start[1]) - (end[1] - start[1]) * (x - start[0]) for x, y in polygon]
    for index, point in enumerate(polygon):
        before, here, there = polygon[index - 1], sides[index - 1], sides[index]
        if (here < 0) != (there < 0):
            share = here / (here - there)
            kept.append(tuple(p + share * (q - p) for p, q in zip(before, point, strict=True)))
        if there >= 0:
            kept.append(point)
    return kept


def iou_by_clipping(a, b):
    polygon, outline = corners_of(a), corners_of(b)
    for index in range(4):
        polygon = clipped(polygon, outline[index - 1], outline[index])
    area = sum(p[0] * q[1] - p[1] * q[0] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True)) / 2
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    both = area * max(height, 0)
    return both / (math.prod(a[3:6]) + math.prod(b[3:6]) - both)


def test_it_is_what_clipping_gives_and_symmetric():
    a, b = random_boxes(0), random_boxes(1)
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    wanted = torch.tensor([iou_by_clipping(*pair) for pair in pairs], dtype=torch.float64)
    assert 10 < int((wanted > 0).sum()) < 40, "pairs that overlap and pairs that do not"
    torch.testing.assert_close(paired_iou(a, b), wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(paired_iou(b, a), paired_iou(a, b), rtol=0, atol=1e-14)


def test_its_gradients_are_those_of_small_steps():
    a, b = (random_boxes(seed, 12).requires_grad_() for seed in (2, 3))
    assert torch.autograd.gradcheck(paired_iou, (a, b))


def test_boxes_that_are_not_turned_have_the_closed_form():
    def closed_form(a, b):
        inside = torch.minimum(a[:, :3] + a[:, 3:6] / 2, b[:, :3] + b[:, 3:6] / 2)
        inside = (inside - torch.maximum(a[:, :3] - a[:, 3:6] / 2, b[:, :3] - b[:, 3:6] / 2)).clamp(min=0).prod(1)
        return inside / (a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - inside)

    a, b = (random_boxes(seed, 100, yaw=False).requires_grad_() for seed in (4, 5))
    found, wanted = paired_iou(a, b), closed_form(a, b)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), (a, b)), torch.autograd.grad(wanted.sum(), (a, b)), strict=True
    ):
        torch.testing.assert_close(ours[:, :6], theirs[:, :6], rtol=0, atol=1e-12)


BOX = (1.0, 2.0, 3.0, 2.0, 1.0, 0.5, 0.3)
AWKWARD = {
    "the same": (BOX, 1.0),
    "half a turn on": ((1, 2, 3, 2, 1, 0.5, 0.3 + math.pi), 1.0),
    "a quarter on, sizes swapped": ((1, 2, 3, 1, 2, 0.5, 0.3 + math.pi / 2), 1.0),
    "a hair beside": ((1 + 1e-7, 2 - 1e-7, 3, 2 + 1e-7, 1, 0.5, 0.3 + 1e-7), 1.0),
    "one on the other": ((1, 2, 3.5, 2, 1, 0.5, 0.3), 0.0),
    "side by side": ((1 + 2 * math.cos(0.3), 2 + 2 * math.sin(0.3), 3, 2, 1, 0.5, 0.3), 0.0),
    "an edge in common, inside": ((1 + math.cos(0.3) / 2, 2 + math.sin(0.3) / 2, 3, 1, 1, 0.5, 0.3), 0.5),
    "nested": ((1, 2, 3, 1, 0.5, 0.25, 0.3), 0.125),
    "nested, turned": ((1, 2, 3, 0.2, 0.2, 0.5, 1.0), 0.04 / 2),
    "apart": ((50, 2, 3, 2, 1, 0.5, 1.0), 0.0),
    "without a volume": ((1, 2, 3, 0, 0, 0, 0.3), 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_awkward_pairs_have_their_value_and_bounded_gradients(dtype):
    a = torch.tensor([BOX] * len(AWKWARD), dtype=dtype, requires_grad=True)
    b = torch.tensor([box for box, _ in AWKWARD.values()], dtype=dtype, requires_grad=True)
    wanted = torch.tensor([iou for _, iou in AWKWARD.values()], dtype=dtype)
    for first, second in ((a, b), (b, a)):
        found = paired_iou(first, second)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-6)
        for gradient in torch.autograd.grad(found.sum(), (a, b)):
            assert (gradient.abs() < 10).all(), "no NaN, and nothing divided by a hair"


def test_squares_at_45_degrees_meet_in_an_octagon():
    a = torch.tensor([[0, 0, 0, 1, 1, 1, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0, 0, 0, 1, 1, 1, math.pi / 4]], dtype=torch.float64)
    octagon = 2 * (math.sqrt(2) - 1)
    assert float(paired_iou(a, b)) == pytest.approx(octagon / (2 - octagon), rel=1e-12)
