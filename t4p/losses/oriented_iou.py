"""Overlap of boxes that are turned about the vertical, pair by pair, with gradients for both."""

from __future__ import annotations

import torch
from torch import Tensor

# Corners of a footprint counter-clockwise, in half sizes.
_CORNER_SIGNS = ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of box i of a with box i of b.

    Args:
        a, b: (P, 7) of the same float type, at least float32: centre (metres), full sizes along the box's own axes
            (metres, not negative), yaw (radians, counter-clockwise about +z).

    Returns:
        (P,) in [0, 1] up to rounding; 0 where neither box has a volume. The gradient is finite everywhere, 0 for boxes
        apart, and where boxes share a face one of the subgradients.
    """
    half_height_a, half_height_b = a[:, 5] / 2, b[:, 5] / 2
    top = torch.minimum(a[:, 2] + half_height_a, b[:, 2] + half_height_b)
    bottom = torch.maximum(a[:, 2] - half_height_a, b[:, 2] - half_height_b)
    intersection = _footprint_overlap(a, b) * (top - bottom).clamp(min=0)
    union = a[:, 3:6].prod(1) + b[:, 3:6].prod(1) - intersection
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def footprint_corners(boxes: Tensor) -> Tensor:
    """(P, 4, 2) corners of boxes (P, 7) seen from above, counter-clockwise, metres from each box's own centre."""
    signs = torch.tensor(_CORNER_SIGNS).to(boxes)
    return _turned(signs * boxes[:, None, 3:5] / 2, boxes[:, 6])


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """points (P, S, 2) of each pair turned by its angle (P,), counter-clockwise."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)


def _footprint_overlap(a: Tensor, b: Tensor) -> Tensor:
    """(P,) square metres that both boxes of a pair cover, seen from above.

    Green's theorem in the frame of b, where its footprint is |x| <= w, |y| <= h: the overlap is the integral of
    clamp(x, -w, w) dy along the outline of a, taken where |y| <= h. There is no polygon to keep: an edge that lies on
    an edge of b, where clipping one polygon by another has to decide on which side rounding put it, counts for what
    it is. No quotient below exceeds 1, and what it is multiplied with is no longer than its divisor: gradients stay
    bounded however near to parallel two edges are.
    """
    corners = footprint_corners(a) + (a[:, None, :2] - b[:, None, :2])
    corners = _turned(corners, -b[:, 6])
    half_width, half_depth = b[:, 3, None] / 2, b[:, 4, None] / 2
    x_start, y_start = corners.unbind(-1)
    x_end, y_end = corners.roll(-1, dims=1).unbind(-1)
    y_from, y_to = _clamp(y_start, half_depth), _clamp(y_end, half_depth)
    run, rise = x_end - x_start, y_end - y_start
    x_from = x_start + run * _share(y_from - y_start, rise)
    x_to = x_end - run * _share(y_end - y_to, rise)
    return ((y_to - y_from) * _mean_of_clamped(x_from, x_to, half_width)).sum(1)


def _mean_of_clamped(start: Tensor, end: Tensor, limit: Tensor) -> Tensor:
    """The mean of clamp(x, -limit, limit) for x from start to end."""
    inner_start, inner_end = _clamp(start, limit), _clamp(end, limit)
    beyond_start = _share(inner_start - start, end - start)
    beyond_end = _share(end - inner_end, end - start)
    between = 1 - beyond_start - beyond_end
    return beyond_start * inner_start + beyond_end * inner_end + between * (inner_start + inner_end) / 2


def _clamp(x: Tensor, limit: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(x, limit), -limit)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole between 0 and 1; of no whole, any such number."""
    return (part / torch.where(whole == 0, 1, whole)).clamp(0, 1)
