"""Which pairs of L_e take part, where walls and floors would be most of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Cosines are divided by this before the exponential: two cells closer than about 0.15 count as alike.
DENSITY_TEMPERATURE = 0.15


def draw_balanced(
    clip_features: Tensor, cell_of_pair: Tensor, uniforms: Tensor, at_most: int, balance: float
) -> Tensor:
    """Draw pairs of every frame, rare CLIP features as often as common ones.

    Drawn uniformly, most pairs are of walls and floors, which are then each other's negatives, and what makes up two
    per cent of a room is hardly seen. Here a pair is drawn with a weight of density^-balance, without repetition
    (Efraimidis and Spirakis 2006: the largest uniform^(1 / weight) win); the density of a cell is the mean over the
    frame's cells of exp(cosine / DENSITY_TEMPERATURE). A frame's draw depends on nothing but the frame.

    Args:
        clip_features: (F, d, Hc, Wc) of the frozen image tower.
        cell_of_pair: (P,) int64 row of the cells of all frames, flattened; frame by frame.
        uniforms: (P,) in (0, 1], uniform.
        at_most: pairs of a frame.
        balance: 0 is uniform, 1 gives every density the same part.

    Returns:
        Rows of the pairs that were drawn, ascending: int64.
    """
    num_frames, _, height, width = clip_features.shape
    with torch.autocast(clip_features.device.type, enabled=False):  # densities of 8 bits would be too few
        cells = F.normalize(clip_features.flatten(2).float(), dim=1)
        closeness = torch.exp(cells.transpose(1, 2) @ cells / DENSITY_TEMPERATURE)
    density = closeness.mean(dim=2).flatten()  # (F * Hc * Wc,)
    rank = torch.log(uniforms) * density[cell_of_pair] ** balance
    first = torch.searchsorted(cell_of_pair // (height * width), torch.arange(num_frames + 1, device=uniforms.device))
    drawn = [
        start + rank[start:end].topk(min(at_most, end - start)).indices
        for start, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)
    ]
    return torch.cat([*drawn, cell_of_pair[:0]]).sort().values
