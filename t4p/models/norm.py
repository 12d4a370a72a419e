"""Normalisation of per-voxel features: over all voxels of all ranks, of this rank, or of each voxel alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from t4p.train.distributed import all_gather_equal, all_reduce_sum, subgroup, world_size

NormKind = Literal["sync_batch", "batch", "layer"]
NormFactory = Callable[[int], nn.Module]

# Set while a checkpointed stage runs its forward a second time: its running statistics have moved already.
_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def build_norm(kind: NormKind, group_size: int | None = None) -> NormFactory:
    """What makes the norms of one network: num_channels to a module over rows (V, num_channels).

    Every norm computes in float32 also under autocast (in float64 for float64), and takes any number of rows, 0 too.

    Args:
        group_size: sync_batch: so many consecutive ranks share statistics; None is all of them. Collective when given.

    Raises:
        ValueError: an unknown kind, or a group size that does not divide the world size.
    """
    if kind == "layer":
        return RowLayerNorm
    if kind == "batch":
        return RowBatchNorm
    if kind != "sync_batch":
        raise ValueError(f"unknown norm {kind!r}; choose sync_batch, batch or layer")
    if group_size is None or group_size == world_size():
        return RowBatchNorm if world_size() == 1 else SyncRowBatchNorm
    if world_size() % group_size:
        raise ValueError(f"norm_group_size is {group_size}, which does not divide the world size, {world_size()}")
    return RowBatchNorm if group_size == 1 else partial(SyncRowBatchNorm, group=subgroup(group_size))


@contextmanager
def recomputation() -> Iterator[None]:
    """Leave running statistics alone: what runs in here ran before, with the same input."""
    token = _recomputing.set(True)
    try:
        yield
    finally:
        _recomputing.reset(token)


class RowLayerNorm(nn.LayerNorm):
    """Layer norm of each row."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (V, C), V >= 0."""
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(_at_least_float32(features))


class RowBatchNorm(nn.BatchNorm1d):
    """Batch norm over all rows of this rank.

    Fewer than two rows have no variance (nn.BatchNorm1d raises on them), but at the bottleneck of a small or empty
    frame they happen, and a rank that raises there stops the whole job. They are normalised with the running
    statistics, which then stay as they are; every parameter still gets a gradient, zero for no rows.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (V, C), V >= 0."""
        with torch.autocast(features.device.type, enabled=False):
            return self._normalise(_at_least_float32(features))

    def _normalise(self, features: Tensor) -> Tensor:
        of_batch = self.training and len(features) >= 2
        momentum = 0.0  # moves nothing
        if of_batch and not _recomputing.get():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            momentum = self.momentum or 0.0
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, of_batch, momentum, self.eps
        )


class SyncRowBatchNorm(RowBatchNorm):
    """Batch norm over the rows of all ranks of a group, as one process that held them all would compute it.

    Ranks may hold different numbers of rows, or none. torch's SyncBatchNorm refuses tensors on a CPU. Fewer than two
    rows in the whole group are treated as RowBatchNorm does. Collective in training, forward and backward.
    """

    def __init__(self, num_channels: int, group: ProcessGroup | None = None) -> None:
        """
        Args:
            group: ranks that share statistics; None for all.
        """
        super().__init__(num_channels)
        self._group = group

    def _normalise(self, features: Tensor) -> Tensor:
        if not self.training:
            return super()._normalise(features)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        normalised, mean, variance, count = _SyncBatchNorm.apply(
            features, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self._group
        )
        if not _recomputing.get():
            with torch.no_grad():
                # No branch on the count, which would make the host wait for the device at every norm.
                momentum = (count >= 2) * self.momentum
                unbiased = variance * (count / (count - 1).clamp_min(1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
                self.num_batches_tracked += (count >= 2).to(self.num_batches_tracked.dtype)
        return normalised


class _SyncBatchNorm(Function):
    """Ranks gather each other's count, mean and sum of squared deviations, and merge them (Chan et al. 1979)."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        group: ProcessGroup | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_rows = len(features)
        own_mean = features.sum(0) / max(num_rows, 1)
        own_squares = (features - own_mean).square().sum(0)
        own = torch.cat([features.new_tensor([num_rows]), own_mean, own_squares])
        counts, means, squares = all_gather_equal(own, group).split([1, len(own_mean), len(own_mean)], dim=1)
        count = counts.sum()
        enough = count >= 2
        mean = (counts * means).sum(0) / count.clamp_min(1)
        variance = (squares + counts * (means - mean).square()).sum(0) / count.clamp_min(1)
        used_mean = torch.where(enough, mean, running_mean.to(mean.dtype))
        inverse_std = torch.where(enough, variance, running_var.to(mean.dtype)).add(eps).rsqrt()
        normalised = (features - used_mean) * inverse_std
        ctx.save_for_backward(normalised, weight, inverse_std, count)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, count)
        return normalised * weight + bias, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        normalised, weight, inverse_std, count = ctx.saved_tensors
        # The gradients of weight and bias are those of the local rows: DeepSpeed sums them over ranks.
        own = torch.stack([gradient.sum(0), (gradient * normalised).sum(0)])
        of_all = all_reduce_sum(own.clone(), ctx.group)
        # Running statistics do not depend on the features: then nothing flows back through them.
        mean_gradient, mean_product = of_all * (count >= 2) / count.clamp_min(1)
        grad_features = (gradient - mean_gradient - normalised * mean_product) * (weight * inverse_std)
        return grad_features, own[1], own[0], None, None, None, None


def _at_least_float32(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
