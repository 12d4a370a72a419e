"""Random changes of training images, so that colour, scale and side tell nothing and other cameras work as well."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_ZOOM = (0.85, 1.3)  # below 1 the image shrinks and its surroundings count as unlabelled
_STRETCH = 0.06  # of one side against the other
_GAIN, _GAMMA = (0.85, 1.1), (0.85, 1.2)


def random_views(colors: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zoom, stretch, shift and mirror images together with their labels, and change the colours.

    Args:
        colors: (B, 3, H, W) uint8.
        labels: (B, H, W) uint8, 0 for unlabelled.
        generator: source of all draws.

    Returns:
        images: (B, 3, H, W) float32 in [0, 1].
        labels: (B, H / 2, W / 2) int64 at half the resolution, 0 for unlabelled and for what lies outside.
    """
    batch, _, height, width = colors.shape
    zoom = torch.exp(_uniform((batch, 1), (math.log(_ZOOM[0]), math.log(_ZOOM[1])), generator))
    extent = _uniform((batch, 2), (1 - _STRETCH, 1 + _STRETCH), generator) / zoom  # of the view, 1 is the whole image
    room = (1 - extent).abs()
    shift = _uniform((batch, 2), (-1.0, 1.0), generator) * room
    mirror = torch.where(torch.rand(batch, generator=generator) < 0.5, -1.0, 1.0)
    source_from_view = torch.zeros(batch, 2, 3)
    source_from_view[:, 0, 0] = extent[:, 0] * mirror
    source_from_view[:, 1, 1] = extent[:, 1]
    source_from_view[:, :, 2] = shift
    grid = F.affine_grid(source_from_view, [batch, 3, height, width], align_corners=False)
    images = F.grid_sample(colors.float().div_(255), grid, padding_mode="border", align_corners=False)
    half_grid = F.affine_grid(source_from_view, [batch, 1, height // 2, width // 2], align_corners=False)
    seen = F.grid_sample(labels[:, None].float(), half_grid, mode="nearest", align_corners=False)
    return random_colors(images, generator), seen[:, 0].long()


def random_colors(images: Tensor, generator: torch.Generator) -> Tensor:
    """Exchange the channels of images (B, 3, H, W) in [0, 1], and change their gains and contrast."""
    batch = len(images)
    order = torch.rand(batch, 3, generator=generator).argsort(dim=1)
    images = images.gather(1, order[:, :, None, None].expand_as(images))
    gain = _uniform((batch, 3, 1, 1), _GAIN, generator)
    gamma = _uniform((batch, 1, 1, 1), _GAMMA, generator)
    return (images * gain).clamp(1e-3, 1).pow(gamma)


def _uniform(shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * torch.rand(shape, generator=generator)
