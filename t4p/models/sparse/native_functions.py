"""Sparse convolutions as GEMMs in plain torch, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from t4p.models.sparse.kernel_map import KernelMap, StrideMap

# Narrow features are gathered for all K^3 offsets into one matrix and multiplied once (im2col); from this many source
# channels on, one gather, GEMM and index_add per offset is faster, because it multiplies only what is there: 13 of 27
# neighbours on a real frame. Measured on 6k-20k voxels, fp32: 16 channels 9 ms against 24; 64 a tie;
# 128 channels 200 against 123.
PAIRWISE_FROM_CHANNELS = 96
# Rows per im2col block: the gathered matrix should stay in the cache of a CPU core (unblocked is twice slower than
# MinkowskiEngine); a GPU wants few large launches and has the memory.
IM2COL_ROWS_CPU = 512
IM2COL_ROWS_DEVICE = 2**15
# On a CPU a half-precision GEMM is compiled for its exact shape: 100 new row counts at 128 x 128 cost 141 ms, the same
# again 38, and every frame brings thousands of new ones. So rows go in blocks of few shapes, whose code stays cached:
# Res16UNet14A on frames seen once, 1.3 to 1.7 times faster (no difference for 34C, no AMX on that machine).
HALF_BLOCK_ROWS = 256
HALF_TAIL_STEP = 32
Pairs = tuple[tuple[Tensor, Tensor] | None, ...]  # by offset: rows that give, rows that get; None is the centre
_widest_only = ContextVar("_widest_only", default=False)


@contextmanager
def widest_turns_only() -> Iterator[None]:
    """Of a convolution's turns only the one that holds most memory: the same bytes at most, in fewer operations.

    The result is wrong. For those who count bytes and leave the multiplying out (t4p.plan). Left out are all offsets of
    a kernel but the one with the most pairs, and all blocks of im2col but the first; the blocks of HALF_BLOCK_ROWS but
    the last are joined.
    """
    before = _widest_only.set(True)
    try:
        yield
    finally:
        _widest_only.reset(before)


def submanifold_conv(features: Tensor, weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """Submanifold convolution, features (V, Cin), weight (K^3, Cin, Cout) to (V, Cout)."""
    return _SubmanifoldConv.apply(features, weight, kernel_map, _compute_dtype(features))


def downsample(features: Tensor, weight: Tensor, stride_map: StrideMap) -> Tensor:
    """Kernel 2, stride 2, features (num_fine, Cin), weight (8, Cin, Cout) to (num_coarse, Cout)."""
    return _Downsample.apply(features, weight, stride_map, _compute_dtype(features))


def upsample(features: Tensor, weight: Tensor, stride_map: StrideMap) -> Tensor:
    """The transpose of downsample, features (num_coarse, Cin), weight (8, Cin, Cout) to (num_fine, Cout)."""
    return _Upsample.apply(features, weight, stride_map, _compute_dtype(features))


def _compute_dtype(features: Tensor) -> torch.dtype:
    """The dtype of the GEMMs: autocast's where it is on, float64 left alone as autocast itself does.

    torch.amp.custom_fwd would do this for one device type fixed at import and one fixed dtype; here both follow the
    tensors, and weight gradients are returned in float32 instead of passing through a bfloat16 copy of the weight.
    """
    device_type = features.device.type
    if torch.is_autocast_enabled(device_type) and features.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return features.dtype


class _SubmanifoldConv(Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, kernel_map: KernelMap, compute_dtype: torch.dtype
    ) -> Tensor:
        x, w = _save(ctx, features, weight, kernel_map, compute_dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _convolve(x, w, kernel_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        grad = grad_output.to(x.dtype).contiguous()
        grad_features = grad_weight = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_features = _convolve_back(grad, w, ctx.map).to(ctx.features_dtype)
            if ctx.needs_input_grad[1]:
                grad_weight = x.new_empty(w.shape, dtype=ctx.weight_dtype)
                for k in _turns(ctx.map.pairs):
                    if (pairs := ctx.map.pairs[k]) is None:
                        grad_weight[k] = _outer(x, grad, ctx.weight_dtype)
                    else:
                        source, target = pairs  # what is gathered has no name: it would live on in the next turn
                        grad_weight[k] = _outer(
                            x.index_select(0, source), grad.index_select(0, target), ctx.weight_dtype
                        )
        return grad_features, grad_weight, None, None


class _Downsample(Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, stride_map: StrideMap, compute_dtype: torch.dtype
    ) -> Tensor:
        x, w = _save(ctx, features, weight, stride_map, compute_dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _sum_children(x, w, stride_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        grad = grad_output.to(x.dtype).contiguous()
        grad_features = grad_weight = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_features = _spread_to_children(grad, w.transpose(1, 2), ctx.map).to(ctx.features_dtype)
            if ctx.needs_input_grad[1]:
                fine, coarse = x.index_select(0, ctx.map.fine_rows), grad.index_select(0, ctx.map.coarse_rows)
                grad_weight = _grouped_outer(fine, coarse, ctx.map, ctx.weight_dtype)
        return grad_features, grad_weight, None, None


class _Upsample(Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, stride_map: StrideMap, compute_dtype: torch.dtype
    ) -> Tensor:
        x, w = _save(ctx, features, weight, stride_map, compute_dtype)
        with torch.autocast(x.device.type, enabled=False):
            return _spread_to_children(x, w, stride_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        grad = grad_output.to(x.dtype).contiguous()
        grad_features = grad_weight = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                grad_features = _sum_children(grad, w.transpose(1, 2), ctx.map).to(ctx.features_dtype)
            if ctx.needs_input_grad[1]:
                coarse, fine = x.index_select(0, ctx.map.coarse_rows), grad.index_select(0, ctx.map.fine_rows)
                grad_weight = _grouped_outer(coarse, fine, ctx.map, ctx.weight_dtype)
        return grad_features, grad_weight, None, None


def _save(
    ctx: Any, features: Tensor, weight: Tensor, coordinate_map: KernelMap | StrideMap, compute_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x, w = features.to(compute_dtype), weight.to(compute_dtype)
    ctx.save_for_backward(x, w)
    ctx.map = coordinate_map
    ctx.features_dtype, ctx.weight_dtype = features.dtype, weight.dtype
    return x, w


def _needs_fixed_shapes(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) and len(x) > 0


def _fixed_blocks(x: Tensor) -> tuple[Tensor, ...]:
    """Rows in blocks of HALF_BLOCK_ROWS, the last padded with zeros to a multiple of HALF_TAIL_STEP."""
    whole = (len(x) - 1) // HALF_BLOCK_ROWS * HALF_BLOCK_ROWS
    *blocks, tail = x.split((whole, len(x) - whole)) if _widest_only.get() else x.split(HALF_BLOCK_ROWS)
    return (*blocks, F.pad(tail, (0, 0, 0, -len(tail) % HALF_TAIL_STEP)))


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """x (R, C) @ matrix (C, C')."""
    if not _needs_fixed_shapes(x):
        return x @ matrix
    return torch.cat([block @ matrix for block in _fixed_blocks(x)])[: len(x)]


def _outer(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x (R, C) transposed @ y (R, C'), as dtype."""
    if not _needs_fixed_shapes(x):
        return (x.t() @ y).to(dtype)
    total = torch.zeros(x.shape[1], y.shape[1], dtype=_sum_dtype(x.dtype), device=x.device)
    for x_block, y_block in zip(_fixed_blocks(x), _fixed_blocks(y), strict=True):
        total += x_block.t() @ y_block
    return total.to(dtype)


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Partial GEMM results are added up in at least float32, as inside one GEMM."""
    return torch.promote_types(dtype, torch.float32)


def _convolve(x: Tensor, w: Tensor, kernel_map: KernelMap) -> Tensor:
    """Submanifold convolution, x (V, Cin), w (K^3, Cin, Cout), by the method that suits the source width."""
    if x.shape[1] >= PAIRWISE_FROM_CHANNELS:
        return _by_pairs(x, w, kernel_map.pairs)
    return _by_im2col(x, w.reshape(-1, w.shape[2]), kernel_map)


def _convolve_back(grad: Tensor, w: Tensor, kernel_map: KernelMap) -> Tensor:
    """Gradient of _convolve in x from grad (V, Cout): (V, Cin).

    What voxel i gave to j at offset k, it gets back from j at the opposite offset, K^3 - 1 - k: the same convolution
    with the offsets reversed and each weight transposed.
    """
    if grad.shape[1] >= PAIRWISE_FROM_CHANNELS:
        return _by_pairs(grad, w.transpose(1, 2), kernel_map.pairs[::-1])
    return _by_im2col(grad, w.flip(0).transpose(1, 2).reshape(-1, w.shape[1]), kernel_map)


def _by_im2col(x: Tensor, flat_weight: Tensor, kernel_map: KernelMap) -> Tensor:
    """x (V, C), flat_weight (K^3 * C, Cout), to (V, Cout): gather blocks of all K^3 neighbours, one GEMM per block."""
    num_voxels, num_channels = x.shape
    num_offsets = kernel_map.kernel_size**3
    padded = torch.cat([x, x.new_zeros(1, num_channels)])  # row V answers for absent neighbours
    output = x.new_empty(num_voxels, flat_weight.shape[1])
    rows_per_block = min(num_voxels, IM2COL_ROWS_CPU if x.device.type == "cpu" else IM2COL_ROWS_DEVICE)
    buffer = x.new_empty(rows_per_block * num_offsets, num_channels)
    for start in range(0, rows_per_block if _widest_only.get() else num_voxels, max(rows_per_block, 1)):
        neighbours = kernel_map.neighbours[start : start + rows_per_block]
        gathered = buffer[: neighbours.numel()]
        torch.index_select(padded, 0, neighbours.reshape(-1), out=gathered)
        block = output[start : start + len(neighbours)]
        gathered = gathered.view(len(neighbours), num_offsets * num_channels)
        if _needs_fixed_shapes(x):
            block.copy_(_times(gathered, flat_weight))
        else:
            torch.mm(gathered, flat_weight, out=block)
    return output


def _by_pairs(x: Tensor, w: Tensor, pairs: Pairs) -> Tensor:
    """x (V, C), w (K^3, C, Cout), to (V, Cout): per offset gather, multiply and add; at the centre only multiply."""
    output = _times(x, w[len(w) // 2]).to(_sum_dtype(x.dtype))
    for k in _turns(pairs):
        if (rows := pairs[k]) is not None:
            source, target = rows
            output.index_add_(0, target, _times(x.index_select(0, source), w[k]).to(output.dtype))
    return output.to(x.dtype)


def _turns(pairs: Pairs) -> Sequence[int]:
    """The offsets of a kernel that are gone through: all of them."""
    if not _widest_only.get():
        return range(len(pairs))
    widest = max(range(len(pairs)), key=lambda k: 0 if (rows := pairs[k]) is None else len(rows[0]))
    return sorted({widest, len(pairs) // 2})


def _sum_children(fine: Tensor, w: Tensor, stride_map: StrideMap) -> Tensor:
    """Add each child, times the weight of its position, to its parent: (num_fine, Cin) to (num_coarse, Cout)."""
    grouped = fine.index_select(0, stride_map.fine_rows).split(stride_map.group_sizes)
    parents = stride_map.coarse_rows.split(stride_map.group_sizes)
    output = fine.new_zeros(stride_map.num_coarse, w.shape[2], dtype=_sum_dtype(fine.dtype))
    for rows, children, child_weight in zip(parents, grouped, w, strict=True):
        output.index_add_(0, rows, _times(children, child_weight).to(output.dtype))
    return output.to(fine.dtype)


def _spread_to_children(coarse: Tensor, w: Tensor, stride_map: StrideMap) -> Tensor:
    """Give each child its parent times the weight of its position: (num_coarse, Cin) to (num_fine, Cout)."""
    grouped = coarse.index_select(0, stride_map.coarse_rows).split(stride_map.group_sizes)
    products = torch.cat([_times(parents, child_weight) for parents, child_weight in zip(grouped, w, strict=True)])
    return torch.empty_like(products).index_copy_(0, stride_map.fine_rows, products)


def _grouped_outer(source: Tensor, target: Tensor, stride_map: StrideMap, dtype: torch.dtype) -> Tensor:
    """Weight gradient (8, Cin, Cout) from grouped rows: source (num_fine, Cin), target (num_fine, Cout)."""
    groups = zip(source.split(stride_map.group_sizes), target.split(stride_map.group_sizes), strict=True)
    return torch.stack([_outer(source_group, target_group, dtype) for source_group, target_group in groups])
