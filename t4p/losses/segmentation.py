"""Cross-entropy over the labelled voxels of all ranks, with rare classes weighted up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from t4p.data.labels import IGNORED
from t4p.distributed import all_reduce_sum, world_size


def balanced_cross_entropy(scores: Tensor, labels: Tensor, balance: float, asked: Tensor | None = None) -> Tensor:
    """Weighted cross-entropy; a class counts by its share of the batch to the power -balance. Collective.

    The shares are those of the labelled voxels of all ranks in this micro-batch, so that the loss does not depend on
    how the batch is spread, and no pass over the dataset is needed. Two classes that make up 90 % and 10 % of a batch
    have weights 1.05 and 3.2 with balance 0.5, and their losses parts 3 : 1 instead of 9 : 1.

    Args:
        scores: (V, K) logits.
        labels: (V,) int64 in 0 .. K - 1, or IGNORED.
        balance: 0 is plain cross-entropy, 1 gives every present class the same part.
        asked: (K,) bool, the classes that compete; None is all. A class that does not is pushed nowhere. Every label
            of a voxel must be among them.

    Returns:
        Scalar, W x (weighted sum over local voxels) / (weights of all ranks' voxels): its average over ranks is the
        global mean. 0, with a graph, where no voxel of any rank has a label.
    """
    labelled = labels != IGNORED
    scores, labels = scores[labelled], labels[labelled]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if asked is not None:
        scores = scores.masked_fill(~asked, -torch.inf)
    counts = all_reduce_sum(torch.bincount(labels, minlength=scores.shape[1])).to(scores.dtype)
    shares = counts / counts.sum().clamp(min=1)
    weights = torch.where(counts > 0, shares.clamp(min=torch.finfo(shares.dtype).tiny) ** -balance, 0)
    total = (weights * counts).sum()
    losses = F.cross_entropy(scores, labels, weight=weights, reduction="sum")
    return world_size() * losses / total.clamp(min=torch.finfo(total.dtype).tiny)
