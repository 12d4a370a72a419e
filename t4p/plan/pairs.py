"""What the contrastive losses and synchronised norms gather over ranks. Plain arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from t4p.plan.zero import FP32_BYTES


@dataclass(frozen=True)
class PairGather:
    """One contrastive loss in one micro-batch, as one rank sees it.

    Attributes:
        rows: points of this rank, each with a pair or more.
        columns: pixels of all ranks, likewise: each row's candidates.
        held_bytes: gathered embeddings, their gradients, and two numbers for each column. 0 on one rank, where they
            are views of what is counted elsewhere.
        matrix_bytes: what the matrix of logits would take; it is computed tile by tile and never held.
        logits: rows x columns, the work of one of its passes (one forward, one backward).
        sent_bytes: by one rank, forward and backward.
    """

    rows: int
    columns: int
    held_bytes: int
    matrix_bytes: int
    logits: int
    sent_bytes: int


def pair_gather(points: int, pixels: int, dim: int, world_size: int, *, trained_pixels: bool) -> PairGather:
    """The gather of a loss.

    Args:
        points, pixels: distinct ends of each rank's pairs, as many on all of them.
        dim: width of the embeddings.
        trained_pixels: the gathered side has gradients: True for L_d, False for L_e, whose image side is frozen.
    """
    columns = pixels * world_size
    embeddings = columns * dim * FP32_BYTES
    of_columns = columns * FP32_BYTES
    # A ring sends (W - 1) / W of what is gathered or scattered, twice that of what is reduced: of each column a maximum
    # and a sum are reduced, a weight and a share of the gradient gathered.
    moved = embeddings * (2 if trained_pixels else 1) + (2 * 2 + 2) * of_columns
    alone = world_size == 1
    return PairGather(
        rows=points,
        columns=columns,
        held_bytes=0 if alone else embeddings * (2 if trained_pixels else 1) + 2 * of_columns,
        matrix_bytes=points * columns * FP32_BYTES,
        logits=points * columns,
        sent_bytes=moved * (world_size - 1) // world_size,
    )


def norm_bytes(channels: Sequence[int], group_size: int, *, recomputed: bool) -> int:
    """Bytes that one rank sends for synchronised norms in one micro-batch.

    Each norm gathers a count, a mean and a variance per rank, and sums two gradients per channel.

    Args:
        channels: channels of each norm.
        group_size: ranks that share statistics.
        recomputed: activation checkpointing runs the forward pass of the norms twice.
    """
    gathered = sum(1 + 2 * width for width in channels) * FP32_BYTES * (group_size - 1)
    reduced = 2 * sum(2 * width for width in channels) * FP32_BYTES * (group_size - 1) // group_size
    return gathered * (2 if recomputed else 1) + reduced
