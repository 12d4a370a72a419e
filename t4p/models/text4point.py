"""The 3D half of Text4Point: encoder, expanding FC, Text Querying Module, reducing FC, aggregation, decoder.

Names follow figure 3 of the paper: h3D is the bottleneck, h3D_hat what is aligned with CLIP, z3D the decoder's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from torch import Tensor, nn

from t4p.config.check import problems_of_text_query
from t4p.config.network import NetworkConfig
from t4p.config.plans import UNetPlan, build_plan
from t4p.data.transforms import num_channels
from t4p.errors import ConfigError
from t4p.models.norm import NormFactory, build_norm
from t4p.models.sparse.pyramid import SparseBackend, build_pyramid, require_backend
from t4p.models.text_query import TextQuerying
from t4p.models.unet import SparseUNet

Reading = Literal["bottleneck", "voxels", "levels"]


class Text4Point(nn.Module):
    """Voxels and text to embeddings in CLIP's space (bottleneck) and in the decoder's space (full resolution).

    Plain tensors in and out, so that ZeRO's hooks see every one of them. No weight depends on the number of labels.
    """

    gathered_whole = True  # at ZeRO 3: see t4p.tasks.job

    def __init__(
        self,
        *,
        in_channels: int,
        plan: UNetPlan,
        norm: NormFactory,
        activation_checkpointing: bool,
        sparse_backend: SparseBackend,
        clip_dim: int,
        out_dim: int,
        num_heads: int,
        mlp_ratio: float,
        alpha: float,
        beta: float,
    ) -> None:
        """Build the network.

        Args:
            in_channels: input features of a voxel.
            activation_checkpointing: recomputation of the U-Net's stages.
            clip_dim: d, the width of CLIP's joint space.
            out_dim: C, the width of z3D.
            alpha, beta: h3D_aggr = alpha * h3D + beta * h3D_text_hat. beta = 0 is the plain U-Net, bit for bit.
        """
        super().__init__()
        self._frozen: tuple[nn.Module, ...] = ()
        self.sparse_backend = sparse_backend
        self.alpha = alpha
        self.beta = beta
        self.unet = SparseUNet(in_channels, plan, norm, activation_checkpointing=activation_checkpointing)
        self.expand = nn.Linear(self.unet.bottleneck_channels, clip_dim)
        self.text_query = TextQuerying(clip_dim, num_heads, mlp_ratio)
        self.reduce = nn.Linear(clip_dim, self.unet.bottleneck_channels)
        self.head = nn.Linear(self.unet.out_channels, out_dim)

    def freeze(self, parts: Sequence[str]) -> None:
        """From now on these parts do not train: no gradients, and norms as in evaluation whatever the mode.

        Their weights become buffers under the same names: DeepSpeed 0.19.8 restores frozen parameters to the number of
        ranks that saved them and to no other, and buffers are what we restore ourselves.

        Args:
            parts: any of `encoder` (up to h3D_hat, with the FC), `text_query` (with the FC behind it), `decoder`
                (without the head), and `fine`: what "levels" does not read, the decoder beyond its first stage and the
                head.
        """
        of_part = {
            "encoder": (self.unet.stem, self.unet.stem_norm, self.unet.encoder, self.expand),
            "text_query": (self.text_query, self.reduce),
            "decoder": (self.unet.decoder,),
            "fine": (*self.unet.decoder[1:], self.head),
        }
        self._frozen = tuple(module for part in parts for module in of_part[part])
        for part in self._frozen:
            for module in part.modules():
                for name, weight in list(module.named_parameters(recurse=False)):
                    delattr(module, name)
                    module.register_buffer(name, weight.detach())
        self.train(self.training)

    def stages(self, read: Reading = "voxels") -> tuple[tuple[str, ...], ...]:
        """Names of the parts of each stage that a reading goes through, from the stem on, without the head."""
        encoder = tuple((f"unet.encoder.{index}",) for index in range(len(self.unet.encoder)))
        decoder = tuple((f"unet.decoder.{index}",) for index in range(len(self.unet.decoder)))
        num_decoded = {"bottleneck": 0, "levels": 1, "voxels": len(decoder)}[read]
        middle = ("expand", "text_query", "reduce")
        return (("unet.stem", "unet.stem_norm"), *encoder, middle, *decoder[:num_decoded])

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(
        self, voxel_coords: Tensor, voxel_features: Tensor, text: Tensor, read: Reading = "voxels"
    ) -> tuple[Tensor, ...]:
        """Encode, query the text, decode.

        Args:
            voxel_coords: (V, 4) int32 (scene, x, y, z), unique rows in ascending order.
            voxel_features: (V, in_channels).
            text: (K', d) label embeddings of the frozen text tower.
            read: how far the decoder goes: not at all ("bottleneck"), to every voxel ("voxels"), or one level above the
                bottleneck ("levels"), where boxes are found.

        Returns:
            h3D_hat: (Vb, d) at the bottleneck, rows in ascending order of their coordinates; not normalised.
            z3D: (V, C), rows as `voxel_coords`; not normalised. (0, C) with "bottleneck".
            With "levels" four others instead of z3D: h3D_aggr (Vb, d') and its coordinates (Vb, 4) int32, in cells of
            the bottleneck; features (Vf, Cf) of the level above it and their coordinates (Vf, 4) int32, in its cells.
        """
        pyramid = build_pyramid(self.sparse_backend, voxel_coords, self.unet.num_levels)
        levels = self.unet.encode(pyramid, voxel_features)
        bottleneck = levels[-1]
        expanded = self.expand(bottleneck)
        if read == "bottleneck":
            return expanded, expanded.new_zeros(0, self.head.out_features)
        queried = self.reduce(self.text_query(expanded, text))
        aggregated = self.alpha * bottleneck + self.beta * queried.to(bottleneck.dtype)
        if read == "voxels":
            return expanded, self.unet.decode(pyramid, (*levels[:-1], aggregated), self.head)
        coarse = self.unet.num_levels - 1
        fine = self.unet.decode_once(pyramid, aggregated, levels[-2])
        return expanded, aggregated, pyramid.coords(coarse), fine, pyramid.coords(coarse - 1)


def build_text4point(model: NetworkConfig, clip_dim: int, out_dim: int) -> Text4Point:
    """The network that a configuration describes, with random weights; out_dim is C, the width of z3D.

    Raises:
        ConfigError: the plan of the U-Net is unknown, or its lists do not fit together; the Text Querying Module does
            not fit the width of CLIP; the sparse backend is not installed; model.norm_group_size does not divide the
            world size.
    """
    try:
        plan = build_plan(model.unet)
    except ValueError as error:
        raise ConfigError(f"model.unet: {error}") from error
    for problem in problems_of_text_query(model, clip_dim):
        raise ConfigError(str(problem))
    try:
        require_backend(model.sparse_backend)
    except ImportError as error:
        raise ConfigError(f"model.sparse_backend is {model.sparse_backend!r}: {error}") from error
    try:
        norm = build_norm(model.norm, model.norm_group_size)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    return Text4Point(
        in_channels=num_channels(model.point_features),
        plan=plan,
        norm=norm,
        activation_checkpointing=model.unet.activation_checkpointing,
        sparse_backend=model.sparse_backend,
        clip_dim=clip_dim,
        out_dim=out_dim,
        num_heads=model.text_query.num_heads,
        mlp_ratio=model.text_query.mlp_ratio,
        alpha=model.text_query.alpha,
        beta=model.text_query.beta,
    )
