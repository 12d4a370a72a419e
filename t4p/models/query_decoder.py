"""Queries that look for instances among groups of voxels (SPFormer, Sun et al. 2023), named against text.

A group is an over-segment: voxels that belong together whatever is in the scene. Queries are learnt, the same for every
sample. Each layer lets them look at the groups of their mask so far, then at each other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t4p.losses.instance import MaskPredictions
from t4p.models.norm import RowLayerNorm
from t4p.models.score_map import compare_with_text_or_none

MLP_RATIO = 4


def pool_groups(features: Tensor, group_of_voxel: Tensor, num_groups: int) -> Tensor:
    """The mean feature of every group's voxels: the same in every run on a CPU.

    Args:
        features: (V, C).
        group_of_voxel: (V,) int64 in 0 .. num_groups - 1.

    Returns:
        (num_groups, C) in float32 at least; 0 for a group without a voxel.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    sums = features.new_zeros(num_groups, features.shape[1]).index_add(0, group_of_voxel, features)
    return sums / torch.bincount(group_of_voxel, minlength=num_groups).clamp(min=1)[:, None]


class QueryDecoder(nn.Module):
    """Groups in, a mask, a label and a score from every query out, after every layer.

    Plain tensors in and out, and every parameter is part of the results, also where there is no group or no sample:
    for ZeRO. No weight depends on the number of labels.
    """

    gathered_whole = True  # at ZeRO 3: see t4p.tasks.job

    def __init__(
        self,
        in_channels: int,
        dim: int,
        num_queries: int,
        num_layers: int,
        num_heads: int,
        clip_dim: int,
        logit_scale: float,
    ) -> None:
        """
        Args:
            in_channels: C, the width of a group's features.
            dim: the width of the queries.
            num_queries: Q, more than a sample has instances.
            num_heads: divides dim.
            clip_dim: d, the width of the text.
            logit_scale: what the multiplier of the cosines begins with; it is learnt.

        Raises:
            ValueError: num_heads does not divide dim, or there is no query.
        """
        super().__init__()
        if num_queries < 1:
            raise ValueError(f"num_queries is {num_queries}; every mask is the answer of a query: use 1 or more")
        self.from_features = nn.Sequential(nn.Linear(in_channels, dim), RowLayerNorm(dim))
        self.mask_features = _mlp(dim, dim, dim)
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.layers = nn.ModuleList(_Layer(dim, num_heads) for _ in range(num_layers))
        self.query_norm = RowLayerNorm(dim)
        self.to_mask = _mlp(dim, dim, dim)
        self.to_score = _mlp(dim, dim, 1)
        self.to_text = nn.Linear(dim, clip_dim)
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(logit_scale)]))
        self.no_object = nn.Parameter(torch.zeros(1))

    def forward(
        self, group_features: Tensor, sample_of_group: Tensor, num_samples: int, text: Tensor
    ) -> MaskPredictions:
        """What the queries say before the first layer and after each.

        Args:
            group_features: (G, C), see `pool_groups`.
            sample_of_group: (G,) int64 in 0 .. num_samples - 1, ascending. A sample may have no group.
            text: (K, d) label embeddings, unit-norm.

        Returns:
            num_layers + 1 predictions, stacked, so that they are plain tensors: under ZeRO 3 DeepSpeed's hook on a leaf
            sees no tensor inside of a tuple of tuples, and its gradients stay where they are. `by_layer` takes them
            apart; the last is the result. In float32 at least, whatever autocast says.
        """
        counts = torch.bincount(sample_of_group, minlength=num_samples)
        starts = counts.cumsum(0) - counts
        longest = int(counts.max()) if num_samples and len(sample_of_group) else 1
        place_of_group = torch.arange(len(sample_of_group), device=counts.device) - starts[sample_of_group]
        row_of_group = sample_of_group * longest + place_of_group
        features = self.from_features(group_features)
        # (S, longest, dim) padded with zeros, so that one product does all samples, and none does no harm.
        padded = features.new_zeros(num_samples * longest, features.shape[1]).index_copy(0, row_of_group, features)
        padded = padded.unflatten(0, (num_samples, longest))
        is_group = torch.arange(longest, device=counts.device) < counts[:, None]
        with torch.autocast(padded.device.type, enabled=False):
            mask_features = self.mask_features(padded)

        queries = self.queries.expand(num_samples, -1, -1)
        prediction, padded_logits = self._predict(queries, mask_features, row_of_group, text)
        predictions = [prediction]
        for layer in self.layers:
            queries = layer(queries, padded, _looked_at(padded_logits, is_group))
            prediction, padded_logits = self._predict(queries, mask_features, row_of_group, text)
            predictions.append(prediction)
        return MaskPredictions(*(torch.stack(layers) for layers in zip(*predictions, strict=True)))

    def _predict(
        self, queries: Tensor, mask_features: Tensor, row_of_group: Tensor, text: Tensor
    ) -> tuple[MaskPredictions, Tensor]:
        """What (S, Q, dim) queries say; and the mask logits (S, Q, longest), padding included."""
        queries = self.query_norm(queries)
        with torch.autocast(queries.device.type, enabled=False):
            # Divided as in attention, so that masks begin undecided whatever the width.
            logits = self.to_mask(queries) @ mask_features.mT / math.sqrt(queries.shape[-1])
            class_logits = compare_with_text_or_none(self.to_text(queries), text, self.log_logit_scale, self.no_object)
            scores = self.to_score(queries).squeeze(-1)
        mask_logits = logits.transpose(0, 1).flatten(1).index_select(1, row_of_group)
        return MaskPredictions(class_logits, mask_logits, scores), logits.detach()


class _Layer(nn.Module):
    """Queries look at groups, at each other, and think. Each part is added to what was there, its input normed."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.group_norm = RowLayerNorm(dim)
        self.look_norm = RowLayerNorm(dim)
        self.look = _Attention(dim, num_heads)
        self.talk_norm = RowLayerNorm(dim)
        self.talk = _Attention(dim, num_heads)
        self.mlp = nn.Sequential(RowLayerNorm(dim), _mlp(dim, MLP_RATIO * dim, dim))

    def forward(self, queries: Tensor, groups: Tensor, looked_at: Tensor) -> Tensor:
        """Queries (S, Q, dim), groups (S, N, dim) and which of them each query may look at, (S, Q, N) bool."""
        queries = queries + self.look(self.look_norm(queries), self.group_norm(groups), looked_at)
        normed = self.talk_norm(queries)
        queries = queries + self.talk(normed, normed)
        return queries + self.mlp(queries)


class _Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}; choose a divisor")
        self.num_heads = num_heads
        self.to_query = nn.Linear(dim, dim)
        self.to_key = nn.Linear(dim, dim)
        self.to_value = nn.Linear(dim, dim)
        self.to_output = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, asked: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(S, Q, dim) answers of (S, N, dim), those that (S, Q, N) bool allows: at least one for each query."""
        heads = (self.num_heads, -1)
        query, key, value = (
            projection(rows).unflatten(-1, heads).transpose(1, 2)
            for projection, rows in ((self.to_query, queries), (self.to_key, asked), (self.to_value, asked))
        )
        mask = None if allowed is None else allowed[:, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.to_output(attended.transpose(1, 2).flatten(2))


def _looked_at(padded_logits: Tensor, is_group: Tensor) -> Tensor:
    """(S, Q, N) bool, the groups in the mask of each query; where it has none, all of its sample.

    Args:
        padded_logits: (S, Q, N).
        is_group: (S, N) bool. A sample without a group looks at its padding: a softmax over nothing is NaN.
    """
    is_group = (is_group | ~is_group.any(1, keepdim=True))[:, None]
    in_mask = (padded_logits > 0) & is_group
    return torch.where(in_mask.any(2, keepdim=True), in_mask, is_group)


def _mlp(in_channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels))
