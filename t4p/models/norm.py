"""Normalisation of per-voxel features: over all voxels of all ranks, of this rank, or of each voxel alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from t4p.distributed import all_gather_equal, all_reduce_max, all_reduce_sum, subgroup, world_size

NormKind = Literal["sync_batch", "batch", "layer"]
NormFactory = Callable[[int], nn.Module]

# Set while a checkpointed stage runs its forward a second time: its running statistics have moved already.
_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


def build_norm(kind: NormKind, group_size: int | None = None) -> NormFactory:
    """What makes the norms of one network: num_channels to a module over rows (V, num_channels).

    Every norm computes in float32 also under autocast (in float64 for float64), and takes any number of rows, 0 too.
    All kinds but layer have the same entries in a state dict. With batch, and with a group size, each rank or group
    moves running statistics of its own, until merge_running_statistics makes them one.

    Args:
        group_size: sync_batch: so many consecutive ranks share statistics; None is all of them. Collective when given.

    Raises:
        ValueError: an unknown kind, or a group size that does not divide the world size. A process that only measures
            or reads a network of a larger world (`t4p plan`, load_exported) leaves the group size out.
    """
    if kind == "layer":
        return RowLayerNorm
    if kind == "batch":
        return RowBatchNorm
    if kind != "sync_batch":
        raise ValueError(f"unknown norm {kind!r}; choose sync_batch, batch or layer")
    if group_size is not None and world_size() % group_size:
        raise ValueError(
            f"norm_group_size is {group_size}, which does not divide the world size, {world_size()}; choose a divisor, "
            "or leave it out for all ranks"
        )
    if world_size() == 1 or group_size == 1:
        return RowBatchNorm
    if group_size is None or group_size == world_size():
        return SyncRowBatchNorm
    return partial(SyncRowBatchNorm, group=subgroup(group_size))


@torch.no_grad()
def merge_running_statistics(module: nn.Module) -> None:
    """Give every rank the mean of all ranks' running statistics, as if they had seen equally many rows. Collective.

    For norms over one rank or a group of ranks, before their statistics are used or saved: a checkpoint holds those of
    rank 0 alone. Where they are equal already nothing changes, and where all norms are over all ranks nothing is sent.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, RowBatchNorm) and not norm.over_all_ranks]
    if not norms:
        return
    sizes = [norm.num_features for norm in norms]
    own = [torch.cat([getattr(norm, name) for norm in norms]) for name in ("running_mean", "running_var")]
    # In float64: the mean of equal numbers is then that number.
    means, variances = all_gather_equal(torch.stack(own).double()).unbind(1)
    mean = means.mean(0)
    variance = (variances + (means - mean).square()).mean(0)
    batches = all_reduce_max(torch.stack([norm.num_batches_tracked for norm in norms]))
    for norm, *merged in zip(norms, mean.split(sizes), variance.split(sizes), batches, strict=True):
        for buffer, value in zip((norm.running_mean, norm.running_var, norm.num_batches_tracked), merged, strict=True):
            buffer.copy_(value)


class Recomputation(AbstractContextManager[None]):
    """Leave running statistics alone: what runs in here ran before, with the same input.

    A class, not a generator: a graph that is kept for a second backward pass enters the same object again.
    """

    _token: Token[bool]

    def __enter__(self) -> None:
        self._token = _recomputing.set(True)

    def __exit__(self, *_: object) -> None:
        _recomputing.reset(self._token)


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

    # nn.BatchNorm1d allows None, which is not built here.
    momentum: float
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @property
    def over_all_ranks(self) -> bool:
        """All ranks share statistics, so that their running statistics are equal too."""
        return world_size() == 1

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features (V, C), V >= 0."""
        with torch.autocast(features.device.type, enabled=False):
            return self._normalise(_at_least_float32(features))

    def _normalise(self, features: Tensor) -> Tensor:
        of_batch = self.training and len(features) >= 2
        moves = of_batch and not _recomputing.get()
        if moves:
            self.num_batches_tracked += 1
        # Momentum 0 keeps the statistics; leaving them out would save other tensors than the first forward did.
        momentum = self.momentum if moves else 0.0
        return F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, of_batch, momentum, self.eps
        )


class SyncRowBatchNorm(RowBatchNorm):
    """Batch norm over the rows of all ranks of a group, as one process that held them all would compute it.

    Ranks may hold different numbers of rows, or none. torch's SyncBatchNorm refuses tensors on a CPU. Fewer than two
    rows in the whole group are treated as RowBatchNorm does. Collective in training, forward and backward.

    Each rank's loss counts: features get the gradient of the sum of the losses of the group, weight and bias this
    rank's share of it. Averaged over ranks, as DeepSpeed does, that is the gradient of the mean loss.
    """

    def __init__(self, num_channels: int, group: ProcessGroup | None = None) -> None:
        """
        Args:
            group: ranks that share statistics; None for all.
        """
        super().__init__(num_channels)
        self._group = group

    @property
    def over_all_ranks(self) -> bool:
        return self._group is None

    def _normalise(self, features: Tensor) -> Tensor:
        if not self.training:
            return super()._normalise(features)
        normalised, mean, variance, count = _SyncBatchNorm.apply(
            features, self.weight, self.bias, self.running_mean, self.running_var, self.eps, self._group
        )
        if not _recomputing.get():
            self._move_running_statistics(mean, variance, count)
        return normalised

    @torch.no_grad()
    def _move_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        # No branch on the count, which would make the host wait for the device at every norm.
        enough = (count >= 2).to(count.dtype)
        unbiased = variance * (count / (count - 1).clamp_min(1))
        self.running_mean.lerp_(mean, enough * self.momentum)
        self.running_var.lerp_(unbiased, enough * self.momentum)
        self.num_batches_tracked += enough.to(self.num_batches_tracked.dtype)


class _SyncBatchNorm(Function):
    """Ranks gather each other's count, mean and variance, and merge them (Chan et al. 1979).

    F.batch_norm with the merged statistics, in evaluation mode, is the fused (x - mean) / std * weight + bias.
    """

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
        mean, variance, count = _merge(all_gather_equal(_own_statistics(features), group))
        used_mean = torch.where(count >= 2, mean, running_mean)
        used_variance = torch.where(count >= 2, variance, running_var)
        ctx.save_for_backward(features, weight, used_mean, used_variance, count)
        ctx.eps, ctx.group = eps, group
        ctx.mark_non_differentiable(mean, variance, count)
        normalised = F.batch_norm(features, used_mean, used_variance, weight, bias, False, 0.0, eps)
        return normalised, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None, None]:
        features, weight, mean, variance, count = ctx.saved_tensors
        normalised = F.batch_norm(features, mean, variance, None, None, False, 0.0, ctx.eps)
        own = torch.stack([gradient.sum(0), (gradient * normalised).sum(0)])
        of_all = all_reduce_sum(own.clone(), ctx.group)
        # Running statistics do not depend on the features: then nothing flows back through them.
        mean_gradient, mean_product = of_all * (count >= 2) / count.clamp_min(1)
        through_statistics = normalised.mul_(mean_product).add_(mean_gradient)
        grad_features = torch.sub(gradient, through_statistics, out=through_statistics)
        grad_features *= weight * (variance + ctx.eps).rsqrt()
        return grad_features, own[1], own[0], None, None, None, None


def _own_statistics(features: Tensor) -> Tensor:
    """(1 + 2 C,) of features (V, C): V, then the mean and the variance of each channel, 0 where there is no row."""
    num_rows, num_channels = features.shape
    if num_rows == 0:
        return features.new_zeros(1 + 2 * num_channels)
    mean, variance = torch.batch_norm_update_stats(features, None, None, 0.0)
    return torch.cat([features.new_full((1,), num_rows), mean, variance])


def _merge(statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), variance (C,) and count () of the rows of all ranks, from _own_statistics of each, (W, 1 + 2 C)."""
    num_channels = statistics.shape[1] // 2
    counts, means, variances = statistics.split([1, num_channels, num_channels], dim=1)
    count = counts.sum()
    shares = counts / count.clamp_min(1)
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), count


def _at_least_float32(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))
