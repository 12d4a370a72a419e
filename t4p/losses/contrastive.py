"""Symmetric contrastive loss over the pairs of all ranks, without ever building the matrix of pairs.

Many pairs share an end: a voxel of the bottleneck lies in several cells of the image, and a cell shows several voxels.
So the logits are those of distinct points with distinct pixels, and how many pairs have a pixel is its weight in the
sums of a row, how many have a point that point's in the sums of a column. The pairs themselves, whose logits count
differently for every pair (those that share an end with it are no negatives), are taken out of these sums and added
one by one, in float64 and as logarithms: nothing that is small beside what was taken out is lost.

Rank r holds the pairs of its own frames. Its rows of the matrix are its points against the pixels of all ranks; tile
by tile they give the log-sum-exp of every row and, combined over ranks, of every column. The backward pass computes
the tiles again. That is one matrix product forward and three backward, memory of two tiles, and of the collectives
only the gather of the pixel embeddings and the sum of their gradients carry embeddings.

The scaling is exact, not approximately right: after the ranks' gradients are averaged (DeepSpeed's default) both
towers and the temperature have the gradient of one process holding all pairs. Most public code is off by a factor of
the world size somewhere, or drops the contributions of other ranks to the gathered side.
"""

from typing import Any, NamedTuple

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
from t4p.losses.contrastive_tiles import COLUMN_CHUNK, ROW_CHUNK, Duplicates, Layout, Pairs, Tiles, sort_pairs


class DistinctEnds(NamedTuple):
    """The ends of P pairs, each once."""

    points: Tensor  # (U,) which rows of the points
    pixels: Tensor  # (V,) which rows of the pixels
    pairs: Tensor  # (2, P) positions in these two


def distinct_ends(pairs: Tensor) -> DistinctEnds:
    """Name every end once: the rows to embed, and the pairs among those, for `contrastive_loss_of_ends`.

    Args:
        pairs: (2, P) int64, rows of the points and of the pixels.
    """
    (points, point_of_pair), (pixels, pixel_of_pair) = (torch.unique(rows, return_inverse=True) for rows in pairs)
    return DistinctEnds(points, pixels, torch.stack([point_of_pair, pixel_of_pair]))


def contrastive_loss(
    point_embeddings: Tensor,
    pixel_embeddings: Tensor,
    logit_scale: Tensor,
    point_ids: Tensor,
    pixel_ids: Tensor,
) -> Tensor:
    """Mean cross-entropy of each point against all pixels and of each pixel against all points, halved and added.

    Row i of both sides is a pair; every other combination is a negative, except duplicates: two pairs of one rank that
    share their point or their pixel. (A frame lives on one rank, so pairs of different ranks share neither.) Where
    equal ids mean equal embeddings, `contrastive_loss_of_ends` gives the same loss for less.

    Args:
        point_embeddings: (P, D) unit-norm.
        pixel_embeddings: (P, D) unit-norm; row i is the other end of point row i.
        logit_scale: scalar, 0-d or (1,), already exponentiated; the same on every rank.
        point_ids: (P,) int64, equal for pairs of this rank with the same voxel.
        pixel_ids: (P,) int64, equal for pairs of this rank with the same cell or pixel.

    Returns:
        Scalar, W times the sum over local rows over the rows of all ranks: its average over ranks is the global mean.
        0 with a graph when no rank has a row. Computed in float32, or float64 if an embedding is, whatever autocast
        says. Collective, and so is its backward; P may differ between ranks and may be 0. The incoming gradient must
        be the same on every rank (a loss weight is, a rank's own factor is not).

    Raises:
        ValueError: shapes do not fit, or only some of the ranks want gradients.
    """
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
    rows = torch.arange(len(point_embeddings), device=point_embeddings.device)
    return _apply(point_embeddings, pixel_embeddings, logit_scale, rows.expand(2, -1), (point_ids, pixel_ids))


def contrastive_loss_of_ends(points: Tensor, pixels: Tensor, logit_scale: Tensor, pairs: Tensor) -> Tensor:
    """The loss of `contrastive_loss` from the distinct ends of the pairs: U x V logits instead of P x P.

    Args:
        points: (U, D) unit-norm, each the end of a pair at least.
        pixels: (V, D) unit-norm, likewise.
        logit_scale: as there.
        pairs: (2, P) int64, rows of `points` and of `pixels`; a pair that is there twice counts twice.

    Returns, raises: as there; P, U and V may differ between ranks and may be 0.
    """
    if points.ndim != 2 or pixels.ndim != 2 or points.shape[1] != pixels.shape[1]:
        raise ValueError(
            f"points must be (U, D) and pixels (V, D); got {tuple(points.shape)} and {tuple(pixels.shape)}"
        )
    if pairs.ndim != 2 or len(pairs) != 2 or pairs.dtype.is_floating_point:
        raise ValueError(
            f"pairs must be (2, P) integers, rows of the points and of the pixels; got {pairs.dtype} "
            f"{tuple(pairs.shape)}"
        )
    return _apply(points, pixels, logit_scale, pairs, None)


def _apply(
    points: Tensor, pixels: Tensor, logit_scale: Tensor, pairs: Tensor, ids: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Agree with the other ranks on what there is and who wants gradients, then compute. Collective.

    Args:
        ids: of each point and each pixel: those that share one are each other's duplicates beside the pairs.
    """
    if logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be a scalar, got shape {tuple(logit_scale.shape)}")
    device = points.device
    graph = torch.is_grad_enabled()
    wants_pixels = graph and pixels.requires_grad
    wants_any = graph and (wants_pixels or points.requires_grad or logit_scale.requires_grad)
    gathered = all_gather_ints([pairs.shape[1], len(pixels), wants_any, wants_pixels], device)
    without_graph = [r for r, (_, _, wants, _) in enumerate(gathered) if not wants]
    if 0 < len(without_graph) < len(gathered):
        # Their backward would never run, and the others would wait for them in its collectives.
        raise ValueError(
            f"ranks {without_graph} of {len(gathered)} call contrastive_loss without anything that requires a "
            "gradient, the others with; pass the same parameters on every rank, also on one without a pair"
        )
    dtype = torch.promote_types(torch.promote_types(points.dtype, pixels.dtype), torch.float32)
    layout = Layout(
        num_pairs=tuple(count for count, _, _, _ in gathered),
        counts=tuple(count for _, count, _, _ in gathered),
        rank=rank(),
        num_rows=len(points),
        row_chunk=ROW_CHUNK,
        column_chunk=COLUMN_CHUNK,
        # A rank's own pixels may be detached (it has none); its products still belong to the others' gradients.
        pixel_gradient=any(wants for _, _, _, wants in gathered),
    )
    with torch.autocast(device.type, enabled=False):
        return _StreamedContrast.apply(
            points.to(dtype),
            pixels.to(dtype),
            logit_scale.to(dtype).reshape(()),
            sort_pairs(pairs, layout),
            None if ids is None else Duplicates(ids, layout),
            layout,
        )


class _StreamedContrast(Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        pixels: Tensor,
        logit_scale: Tensor,
        pairs: Pairs,
        duplicates: Duplicates | None,
        layout: Layout,
    ) -> Tensor:
        columns = all_gather_rows(pixels, layout.counts).flatten(0, 1)
        row_weights, own_weights = (
            torch.bincount(ends, pairs.counts, size).to(points.dtype)
            for ends, size in ((pairs.point, len(points)), (pairs.pixel, len(pixels)))
        )
        column_weights = all_gather_rows(own_weights, layout.counts).flatten()
        tiles = Tiles(layout, points, columns, logit_scale, pairs, duplicates)
        row_lse, column_lse, pair_logits = _log_sum_exps(tiles, layout, points, pairs, row_weights, column_weights)
        of_rows = _cross_entropy(row_lse, pairs.point, own_weights[pairs.pixel], pair_logits, pairs.counts)
        own_lse = column_lse[layout.own_columns]
        of_columns = _cross_entropy(own_lse, pairs.pixel, row_weights[pairs.point], pair_logits, pairs.counts)
        row_shift = of_rows.shift.to(points.dtype)
        column_shift = all_gather_rows(of_columns.shift.to(points.dtype), layout.counts).flatten()
        # In the backward pass a logit's gradient is multiplied with the weights of its ends.
        weights = row_weights[pairs.point] * own_weights[pairs.pixel]
        pair_gradient = ((of_rows.gradient + of_columns.gradient) / weights).to(points.dtype)
        ctx.pairs, ctx.duplicates, ctx.layout = pairs, duplicates, layout
        ctx.save_for_backward(
            points, columns, logit_scale, row_weights, column_weights, row_shift, column_shift, pair_gradient
        )
        return ((of_rows.losses + of_columns.losses).sum() * layout.weight).to(points.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None, None, None]:
        points, columns, logit_scale, row_weights, column_weights, row_shift, column_shift, pair_gradient = (
            ctx.saved_tensors
        )
        layout: Layout = ctx.layout
        with torch.autocast(points.device.type, enabled=False):
            tiles = Tiles(layout, points, columns, logit_scale, ctx.pairs, ctx.duplicates)
            weighted_points = points * row_weights[:, None]
            # Both are gradients of the sum of local pairs with respect to products of embeddings, before the scale.
            point_sums = torch.zeros_like(points)
            column_sums = torch.zeros_like(columns) if layout.pixel_gradient else None
            for rows in layout.row_slices():
                for tile in tiles.visit(rows):
                    gradient = _exp_(torch.add(tile.logits, row_shift[rows, None], out=tile.scratch))
                    gradient += _exp_(tile.logits.add_(column_shift[tile.columns]))
                    gradient.view(-1)[tile.places] = pair_gradient[tile.pairs]
                    gradient *= column_weights[tile.columns]
                    point_sums[rows].addmm_(gradient, columns[tile.columns])
                    if column_sums is not None:
                        column_sums[tile.columns].addmm_(gradient.T, weighted_points[rows])
            point_sums *= row_weights[:, None]
            factor = grad_loss * layout.weight
            grad_scale = (point_sums * points).sum() * factor
            grad_points = point_sums.mul_(logit_scale * factor)
            grad_pixels = None
            if column_sums is not None:
                column_sums.mul_(logit_scale * factor)
                by_rank = column_sums.unflatten(0, (len(layout.counts), max(layout.counts)))
                grad_pixels = reduce_scatter_rows(by_rank, layout.counts)
        return grad_points, grad_pixels, grad_scale, None, None, None


def _log_sum_exps(
    tiles: Tiles, layout: Layout, points: Tensor, pairs: Pairs, row_weights: Tensor, column_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the tiles of this rank's rows. Collective.

    Returns:
        row_lse: (U,) of this rank's rows, what is not a pair of theirs, each as often as its column has pairs; where
            there is none, about the lowest finite number.
        column_lse: (W * max(counts),) likewise, over the rows of all ranks.
        pair_logits: (P,) of the pairs themselves.
    """
    lowest = torch.finfo(points.dtype).min
    row_lse, pair_logits = points.new_empty(layout.num_rows), points.new_empty(len(pairs.point))
    column_max, column_sum = points.new_full((layout.num_columns,), lowest), points.new_zeros(layout.num_columns)
    for rows in layout.row_slices():
        row_max = points.new_full((rows.stop - rows.start,), lowest)
        row_sum = torch.zeros_like(row_max)
        for columns, logits, scratch, inside, _, found in tiles.visit(rows):
            pair_logits[inside] = found
            row_max = _add_exponentials(logits, scratch, row_max, row_sum, column_weights[columns])
            column_max[columns] = _add_exponentials(
                logits.T, scratch.T, column_max[columns], column_sum[columns], row_weights[rows]
            )
        row_lse[rows] = row_sum.log_().add_(row_max)
    if world_size() > 1:
        max_of_all = all_reduce_max(column_max.clone())
        column_sum = all_reduce_sum(column_sum.mul_(column_max.sub_(max_of_all).exp_()))
        column_max = max_of_all
    return row_lse, column_sum.log_().add_(column_max), pair_logits


def _add_exponentials(logits: Tensor, scratch: Tensor, maximum: Tensor, total: Tensor, weights: Tensor) -> Tensor:
    """Move a weighted sum of exponentials on by one tile; changes scratch and total, returns the new maximum."""
    new_maximum = torch.maximum(maximum, logits.amax(1))
    exponentials = _exp_(torch.sub(logits, new_maximum[:, None], out=scratch))
    total.mul_((maximum - new_maximum).exp_()).add_(exponentials @ weights)
    return new_maximum


def _exp_(differences: Tensor) -> Tensor:
    """The exponential in place, at least e^-87 (1.6e-38, nothing beside the sums of at least 1 that it goes into).

    Results below the smallest normal float32 take the CPU 10 to 25 times longer (137 instead of 5 ms for 1024 x 4096),
    and with a logit scale of 100, or wherever duplicates are masked, many are.
    """
    return differences.clamp_(min=-87).exp_()


class _CrossEntropy(NamedTuple):
    """Losses of pairs among the candidates of one of their ends, in float64, each as often as the pair is there."""

    losses: Tensor  # (P,)
    gradient: Tensor  # (P,) of all pairs' losses by the logit of each
    shift: Tensor  # (ends,) the gradient by any other logit is e^(logit + shift), times the weights of both its ends


def _cross_entropy(negatives: Tensor, end: Tensor, weights: Tensor, logits: Tensor, counts: Tensor) -> _CrossEntropy:
    """A pair's candidates are itself, what is no pair of its end, and the others of its end's pairs, of which
    those that share the pair's other end do not count.

    Args:
        negatives: (ends,) log-sum-exp of what is no pair of the end.
        end: (P,) of each pair.
        weights: (P,) pairs that have the pair's other end, itself included.
        logits: (P,) of the pairs.
        counts: (P,) how often each is there.
    """
    negatives, logits = negatives.double(), logits.double()
    others = (weights - counts).log()  # -inf where there is none: no logit makes a negative of it
    highest = negatives.scatter_reduce(0, end, logits + others, "amax")
    terms = (logits + others - highest[end]).exp()
    sums = (negatives - highest).exp().index_add(0, end, terms)
    # The difference is off by rounding of the pair's own term, which is nothing beside the pair itself.
    lse = torch.logaddexp(logits, (sums[end] - terms).clamp(min=0).log() + highest[end])

    # e^-lse, summed over the pairs of an end, is what any logit of that end adds to their losses.
    lowest = torch.full_like(negatives, torch.finfo(negatives.dtype).min)
    highest = lowest.scatter_reduce(0, end, counts.log() - lse, "amax")
    sums = torch.zeros_like(negatives).index_add(0, end, (counts.log() - lse - highest[end]).exp())
    log_sums = sums.log() + highest
    of_others = (logits + others + log_sums[end]).exp() - (logits + others + counts.log() - lse).exp()
    num_pairs = torch.zeros_like(negatives).index_add(0, end, counts)
    return _CrossEntropy(
        losses=counts * (lse - logits),
        gradient=of_others.clamp(min=0) + counts * ((logits - lse).exp() - 1),
        shift=log_sums - num_pairs.clamp(min=1).log(),
    )
