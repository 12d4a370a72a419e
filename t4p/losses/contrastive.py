"""Symmetric contrastive loss over the pairs of all ranks, without ever building the matrix of pairs.

Rank r holds the pairs of its own frames. Its rows of the matrix of logits are its points against the pixels of all
ranks; tile by tile they give the log-sum-exp of every row and, combined over ranks, of every column. The backward pass
computes the tiles again. That is one matrix product forward and three backward, memory of two tiles, and of the
collectives only the gather of the pixel embeddings and the sum of their gradients carry embeddings.

The scaling is exact, not approximately right: after the ranks' gradients are averaged (DeepSpeed's default) both
towers and the temperature have the gradient of one process holding all pairs. Most public code is off by a factor of
the world size somewhere, or drops the contributions of other ranks to the gathered side.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from t4p.distributed import (
    all_gather_ints,
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    rank,
    reduce_scatter_rows,
    world_size,
)


def contrastive_loss(
    point_embeddings: Tensor,
    pixel_embeddings: Tensor,
    logit_scale: Tensor,
    point_ids: Tensor,
    pixel_ids: Tensor,
    *,
    row_chunk: int = 1024,
    column_chunk: int = 4096,
) -> Tensor:
    """Mean cross-entropy of each point against all pixels and of each pixel against all points, halved and added.

    Row i of both sides is a pair; every other combination is a negative, except duplicates: two pairs of one rank that
    share their point or their pixel. (A frame lives on one rank, so pairs of different ranks share neither.)

    Args:
        point_embeddings: (P, D) unit-norm.
        pixel_embeddings: (P, D) unit-norm; row i is the other end of point row i.
        logit_scale: scalar, 0-d or (1,), already exponentiated; the same on every rank.
        point_ids: (P,) int64, equal for pairs of this rank with the same voxel.
        pixel_ids: (P,) int64, equal for pairs of this rank with the same cell or pixel.
        row_chunk: rows of a tile.
        column_chunk: columns of a tile.

    Returns:
        Scalar, W times the sum over local rows over the rows of all ranks: its average over ranks is the global mean.
        0 with a graph when no rank has a row. Computed in float32, or float64 if an embedding is, whatever autocast
        says. Collective, and so is its backward; P may differ between ranks and may be 0. The incoming gradient must
        be the same on every rank (a loss weight is, a rank's own factor is not).

    Raises:
        ValueError: shapes do not fit, or only some of the ranks want gradients.
    """
    _check_arguments(point_embeddings, pixel_embeddings, logit_scale, point_ids, pixel_ids, row_chunk, column_chunk)
    device = point_embeddings.device
    graph = torch.is_grad_enabled()
    wants_pixels = graph and pixel_embeddings.requires_grad
    wants_any = graph and (wants_pixels or point_embeddings.requires_grad or logit_scale.requires_grad)
    gathered = all_gather_ints([len(point_embeddings), wants_any, wants_pixels], device)
    counts = [count for count, _, _ in gathered]
    without_graph = [r for r, (_, wants, _) in enumerate(gathered) if not wants]
    if 0 < len(without_graph) < len(counts):
        # Their backward would never run, and the others would wait for them in its collectives.
        raise ValueError(
            f"ranks {without_graph} of {len(counts)} call contrastive_loss without anything that requires a gradient, "
            "the others with; pass the same parameters on every rank, also on one without a pair"
        )

    dtype = torch.promote_types(torch.promote_types(point_embeddings.dtype, pixel_embeddings.dtype), torch.float32)
    layout = _Layout(
        counts=tuple(counts),
        rank=rank(),
        row_chunk=row_chunk,
        column_chunk=column_chunk,
        # A rank's own pixels may be detached (it has none); its products still belong to the others' gradients.
        pixel_gradient=any(wants for _, _, wants in gathered),
    )
    with torch.autocast(device.type, enabled=False):
        return _StreamedContrast.apply(
            point_embeddings.to(dtype),
            pixel_embeddings.to(dtype),
            logit_scale.to(dtype).reshape(()),
            point_ids,
            pixel_ids,
            layout,
        )


@dataclass(frozen=True)
class _Layout:
    """How the matrix of pairs is spread over ranks and cut into tiles.

    Columns are numbered as all_gather_rows lays them out: rank r's start at r * max(counts), padding included. No tile
    holds columns of two ranks, so no tile holds padding.
    """

    counts: tuple[int, ...]
    rank: int
    row_chunk: int
    column_chunk: int
    pixel_gradient: bool

    @property
    def num_rows(self) -> int:
        return self.counts[self.rank]

    @property
    def own_columns(self) -> slice:
        start = self.rank * max(self.counts)
        return slice(start, start + self.num_rows)

    @property
    def weight(self) -> float:
        """Of one local row in this rank's loss; halved because rows and columns each count half."""
        return 0.5 * len(self.counts) / max(sum(self.counts), 1)

    def own_start(self, columns: slice) -> int | None:
        """The local row that the first of these columns pairs with; None for another rank's columns."""
        start = columns.start - self.rank * max(self.counts)
        return start if 0 <= start < self.num_rows else None

    def row_slices(self) -> Iterator[slice]:
        return _slices(0, self.num_rows, self.row_chunk)

    def column_slices(self) -> Iterator[slice]:
        longest = max(self.counts)
        for r, count in enumerate(self.counts):
            yield from _slices(r * longest, r * longest + count, self.column_chunk)


class _Tiles:
    """The logits of this rank's rows, one tile at a time, in two buffers that every tile reuses.

    The buffers bound the memory: fresh tensors would keep the last tile alive while the next one is made.
    """

    def __init__(
        self,
        layout: _Layout,
        points: Tensor,
        columns: Tensor,
        logit_scale: Tensor,
        point_ids: Tensor,
        pixel_ids: Tensor,
    ) -> None:
        """
        Args:
            points: (P, D) this rank's.
            columns: (W * max(counts), D) the pixels of all ranks.
        """
        self._layout = layout
        self._points = points
        self._columns = columns
        self._logit_scale = logit_scale
        self._ids = (point_ids, pixel_ids)
        # Per chunk of rows and of own columns, the span of the ids: tiles whose spans are apart need no comparison.
        self._row_spans = [_spans(ids, layout.row_chunk) for ids in self._ids]
        self._column_spans = [_spans(ids, layout.column_chunk) for ids in self._ids]
        size = min(layout.row_chunk, layout.num_rows) * min(layout.column_chunk, max(layout.counts))
        self._buffers = (points.new_empty(size), points.new_empty(size))

    def of_rows(self, rows: slice) -> Iterator[tuple[slice, int | None, Tensor, Tensor]]:
        """The tiles of one chunk of rows.

        Yields:
            columns: which columns.
            pairs: the diagonal of the tile that holds the pairs themselves; None where it has none.
            logits: (rows, columns); duplicates hold the lowest finite number: e to it is nothing beside a pair's.
            scratch: of the same shape, uninitialised.
        """
        scaled = self._points[rows] * self._logit_scale
        for columns in self._layout.column_slices():
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            logits, scratch = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self._buffers)
            torch.mm(scaled, self._columns[columns].T, out=logits)
            own_start = self._layout.own_start(columns)
            pairs = None
            if own_start is not None:
                if own_start < rows.stop and rows.start < own_start + shape[1]:
                    pairs = rows.start - own_start
                self._mask_duplicates(logits, rows, slice(own_start, own_start + shape[1]))
            yield columns, pairs, logits, scratch

    def _mask_duplicates(self, logits: Tensor, rows: slice, others: slice) -> None:
        """Take out the negatives that share a point or a pixel with their row; `others` are the columns' own rows."""
        mask: Tensor | None = None
        for ids, row_spans, column_spans in zip(self._ids, self._row_spans, self._column_spans, strict=True):
            row_low, row_high = row_spans[rows.start // self._layout.row_chunk]
            column_low, column_high = column_spans[others.start // self._layout.column_chunk]
            if row_low <= column_high and column_low <= row_high:
                equal = ids[rows, None] == ids[None, others]
                mask = equal if mask is None else mask.logical_or_(equal)
        if mask is not None:
            mask.diagonal(rows.start - others.start).fill_(False)
            # Not -inf: the running maximum of a column may meet only duplicates at first, and -inf - -inf is nan.
            logits.masked_fill_(mask, torch.finfo(logits.dtype).min)


class _StreamedContrast(Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        pixels: Tensor,
        logit_scale: Tensor,
        point_ids: Tensor,
        pixel_ids: Tensor,
        layout: _Layout,
    ) -> Tensor:
        columns = all_gather_rows(pixels, layout.counts).flatten(0, 1)
        tiles = _Tiles(layout, points, columns, logit_scale, point_ids, pixel_ids)
        row_lse, column_lse, pair_logits = _log_sum_exps(tiles, layout, points)
        ctx.layout = layout
        ctx.save_for_backward(points, columns, logit_scale, point_ids, pixel_ids, row_lse, column_lse)
        return (row_lse + column_lse[layout.own_columns] - 2 * pair_logits).sum() * layout.weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None, None]:
        points, columns, logit_scale, point_ids, pixel_ids, row_lse, column_lse = ctx.saved_tensors
        layout: _Layout = ctx.layout
        with torch.autocast(points.device.type, enabled=False):
            tiles = _Tiles(layout, points, columns, logit_scale, point_ids, pixel_ids)
            # Both are gradients of the sum of local rows with respect to products of embeddings, before the scale.
            point_sums = torch.zeros_like(points)
            column_sums = torch.zeros_like(columns) if layout.pixel_gradient else None
            for rows in layout.row_slices():
                for chunk, pairs, logits, gradient in tiles.of_rows(rows):
                    _exp_(torch.sub(logits, row_lse[rows, None], out=gradient))
                    gradient += _exp_(logits.sub_(column_lse[chunk]))
                    if pairs is not None:
                        gradient.diagonal(pairs).sub_(2)
                    point_sums[rows].addmm_(gradient, columns[chunk])
                    if column_sums is not None:
                        column_sums[chunk].addmm_(gradient.T, points[rows])
            factor = grad_loss * layout.weight
            grad_scale = (point_sums * points).sum() * factor
            grad_points = point_sums.mul_(logit_scale * factor)
            grad_pixels = None
            if column_sums is not None:
                column_sums.mul_(logit_scale * factor)
                by_rank = column_sums.unflatten(0, (len(layout.counts), max(layout.counts)))
                grad_pixels = reduce_scatter_rows(by_rank, layout.counts)
        return grad_points, grad_pixels, grad_scale, None, None, None


def _log_sum_exps(tiles: _Tiles, layout: _Layout, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tiles of this rank's rows. Collective.

    Returns:
        row_lse: (P,) of this rank's rows.
        column_lse: (W * max(counts),) over the rows of all ranks; -inf in the padding.
        pair_logits: (P,) of the pairs themselves.
    """
    num_columns = len(layout.counts) * max(layout.counts)
    lowest = torch.finfo(points.dtype).min
    row_lse, pair_logits = points.new_empty(2, layout.num_rows)
    column_max, column_sum = points.new_full((num_columns,), lowest), points.new_zeros(num_columns)
    for rows in layout.row_slices():
        row_max = points.new_full((rows.stop - rows.start,), lowest)
        row_sum = torch.zeros_like(row_max)
        for columns, pairs, logits, scratch in tiles.of_rows(rows):
            if pairs is not None:
                diagonal = logits.diagonal(pairs)
                first = rows.start + max(0, -pairs)
                pair_logits[first : first + len(diagonal)] = diagonal
            row_max = _add_exponentials(logits, scratch, row_max, row_sum, dim=1)
            column_max[columns] = _add_exponentials(logits, scratch, column_max[columns], column_sum[columns], dim=0)
        row_lse[rows] = row_sum.log_().add_(row_max)
    if world_size() > 1:
        max_of_all = all_reduce_max(column_max.clone())
        column_sum = all_reduce_sum(column_sum.mul_(column_max.sub_(max_of_all).exp_()))
        column_max = max_of_all
    return row_lse, column_sum.log_().add_(column_max), pair_logits


def _add_exponentials(logits: Tensor, scratch: Tensor, maximum: Tensor, total: Tensor, dim: int) -> Tensor:
    """Move a running sum of exponentials on by one tile; changes scratch and total, returns the new maximum."""
    new_maximum = torch.maximum(maximum, logits.amax(dim))
    exponentials = _exp_(torch.sub(logits, new_maximum.unsqueeze(dim), out=scratch))
    total.mul_((maximum - new_maximum).exp_()).add_(exponentials.sum(dim))
    return new_maximum


def _exp_(differences: Tensor) -> Tensor:
    """The exponential in place, at least e^-87 (1.6e-38, nothing beside the sums of at least 1 that it goes into).

    Results below the smallest normal float32 take the CPU 10 to 25 times longer (137 instead of 5 ms for 1024 x 4096),
    and with a logit scale of 100, or wherever duplicates are masked, many are.
    """
    return differences.clamp_(min=-87).exp_()


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _spans(ids: Tensor, size: int) -> list[list[int]]:
    """Lowest and highest id of each chunk."""
    spans = [torch.stack(ids[part].aminmax()) for part in _slices(0, len(ids), size)]
    return torch.stack(spans).tolist() if spans else []


def _check_arguments(
    point_embeddings: Tensor,
    pixel_embeddings: Tensor,
    logit_scale: Tensor,
    point_ids: Tensor,
    pixel_ids: Tensor,
    row_chunk: int,
    column_chunk: int,
) -> None:
    if point_embeddings.ndim != 2 or point_embeddings.shape != pixel_embeddings.shape:
        raise ValueError(
            "point_embeddings and pixel_embeddings must both be (P, D), row i of each the two ends of pair i; "
            f"got {tuple(point_embeddings.shape)} and {tuple(pixel_embeddings.shape)}"
        )
    for name, ids in (("point_ids", point_ids), ("pixel_ids", pixel_ids)):
        if ids.shape != point_embeddings.shape[:1] or ids.dtype.is_floating_point:
            raise ValueError(
                f"{name} must be ({len(point_embeddings)},) integers, one per pair; got {ids.dtype} {tuple(ids.shape)}"
            )
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be a scalar, got shape {tuple(logit_scale.shape)}")
    if row_chunk < 1 or column_chunk < 1:
        raise ValueError(f"row_chunk and column_chunk must be at least 1, got {row_chunk} and {column_chunk}")
