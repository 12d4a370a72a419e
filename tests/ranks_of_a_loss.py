"""A fine-tuning's loss on several ranks beside one: what the files that try it have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from t4p.distributed import all_reduce_sum
from t4p.models.prompts import PromptedLabels

Found = tuple[float, torch.Tensor]  # a loss, and the gradient of all parameters


class StandInPrompts(PromptedLabels):
    """A text tower in float64: what the real one computes does not matter here, that gradients pass it does."""

    def __init__(self, labels: Sequence[str], clip_dim: int) -> None:
        self.labels = tuple(labels)
        self.initial_tokens = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self._clip_dim = clip_dim

    def embed(self, prompt_tokens: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        projection = torch.randn(len(self.labels), self._clip_dim, 10, generator=generator, dtype=torch.float64)
        return torch.nn.functional.normalize((projection @ prompt_tokens.flatten()).tanh(), dim=-1)


def averaged(loss: torch.Tensor, module: nn.Module, world_size: int) -> Found:
    """The loss and the gradient of all parameters, as DeepSpeed would average them. Collective."""
    loss.backward()
    assert all(parameter.grad is not None for parameter in module.parameters()), "every rank touches every parameter"
    gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    mean = all_reduce_sum(torch.cat([loss.detach()[None], gradient])) / world_size
    return float(mean[0]), mean[1:]


def difference(found: Found, wanted: Found) -> float:
    """The larger of both: of the losses, and of the gradients beside their largest."""
    scale = float(wanted[1].abs().max())
    return max(abs(found[0] - wanted[0]), float((found[1] - wanted[1]).abs().max()) / scale)
