"""The learned multiplier on cosine similarities, kept within bounds."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from t4p.distributed import all_reduce_sum


def clamped_logit_scale(log_logit_scale: Tensor, minimum: float, maximum: float) -> Tensor:
    """exp(log_logit_scale), clamped to [minimum, maximum] without getting stuck there.

    The clamp is in the forward pass because an in-place clamp of the parameter is overwritten by ZeRO's master copy.
    Inside the bounds the gradient is exp's. At or beyond a bound it passes only if a descent step along it leads back
    inside, otherwise it is zero and the parameter stays.

    Args:
        log_logit_scale: a scalar parameter, 0-d or (1,), the same on every rank.
        minimum: smallest logit scale (not its logarithm), above 0.
        maximum: largest logit scale (not its logarithm), above minimum.

    Returns:
        The logit scale, same shape and dtype.
        Its backward is a collective: which way a step leads is a question about the gradient averaged over ranks, and
        ranks that answered it each for themselves would pass only part of that average.

    Raises:
        ValueError: the bounds are not 0 < minimum < maximum.
    """
    if not 0 < minimum < maximum:
        raise ValueError(f"the bounds of a logit scale must be 0 < minimum < maximum, got {minimum} and {maximum}")
    return _ClampedExp.apply(log_logit_scale, minimum, maximum)


class _ClampedExp(Function):
    @staticmethod
    def forward(ctx: Any, log_logit_scale: Tensor, minimum: float, maximum: float) -> Tensor:
        exact = log_logit_scale.exp()
        logit_scale = exact.clamp(minimum, maximum)
        ctx.save_for_backward(logit_scale, exact >= maximum, exact <= minimum)
        return logit_scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logit_scale: Tensor) -> tuple[Tensor, None, None]:
        logit_scale, at_maximum, at_minimum = ctx.saved_tensors
        gradient_of_all = all_reduce_sum(grad_logit_scale.clone())
        # A descent step moves against the gradient.
        stuck = (at_maximum & (gradient_of_all < 0)) | (at_minimum & (gradient_of_all > 0))
        return torch.where(stuck, 0.0, grad_logit_scale * logit_scale), None, None
