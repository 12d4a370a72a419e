"""The Text Querying Module of figure 3: 3D features ask the text embeddings what they look like in words."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TextQuerying(nn.Module):
    """Norm on both inputs, cross-attention (queries from 3D, keys and values from text), Norm, MLP.

    No residual inside: the residual is the alpha/beta sum around the module. No weight depends on the number of labels,
    which may change from call to call. The softmax runs over labels, so their order does not matter.
    """

    def __init__(self, embed_dim: int, num_heads: int = 8, mlp_ratio: float = 2.0) -> None:
        """
        Args:
            embed_dim: d, the width of CLIP's joint space.
            num_heads: divides d.
            mlp_ratio: hidden width of the MLP over d.

        Raises:
            ValueError: num_heads does not divide embed_dim, or a value is not positive.
        """
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}; choose a divisor")
        hidden_dim = int(embed_dim * mlp_ratio)
        if hidden_dim < 1:
            raise ValueError(f"mlp_ratio is {mlp_ratio}: it leaves the MLP no hidden channel; use 1 or more")
        self.num_heads = num_heads
        self.query_norm = _LayerNorm(embed_dim)
        self.text_norm = _LayerNorm(embed_dim)
        self.to_query = nn.Linear(embed_dim, embed_dim)
        self.to_key = nn.Linear(embed_dim, embed_dim)
        self.to_value = nn.Linear(embed_dim, embed_dim)
        self.to_output = nn.Linear(embed_dim, embed_dim)
        self.output_norm = _LayerNorm(embed_dim)
        self.mlp = nn.Sequential(nn.Linear(embed_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, embed_dim))

    def forward(self, queries: Tensor, text: Tensor) -> Tensor:
        """Describe each 3D feature by the labels it attends to.

        Args:
            queries: (N, d) 3D features in CLIP's space (h3D_hat); N may be 0.
            text: (K', d) label embeddings, K' at least 1.

        Returns:
            (N, d), h3D_text.

        Raises:
            ValueError: there is no label; a softmax over nothing is NaN.
        """
        if len(text) == 0:
            raise ValueError(
                "the Text Querying Module got no label embeddings; give at least one label in model.labels"
            )
        heads = (self.num_heads, -1)
        text = self.text_norm(text)
        query = self.to_query(self.query_norm(queries)).unflatten(-1, heads).transpose(0, 1)
        key = self.to_key(text).unflatten(-1, heads).transpose(0, 1)
        value = self.to_value(text).unflatten(-1, heads).transpose(0, 1)
        attended = F.scaled_dot_product_attention(query[None], key[None], value[None])[0]
        return self.mlp(self.output_norm(self.to_output(attended.transpose(0, 1).flatten(1))))


class _LayerNorm(nn.LayerNorm):
    """Layer norm that computes and returns at least float32, whatever autocast made of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(torch.promote_types(x.dtype, torch.float32)))
