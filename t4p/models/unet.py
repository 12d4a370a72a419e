"""The sparse U-Net of the MinkUNet / Res16UNet family, cut at its bottleneck."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from t4p.config.plans import UNetPlan
from t4p.models.norm import NormFactory, Recomputation, RowBatchNorm
from t4p.models.sparse.layers import Downsample, SubmanifoldConv, Upsample
from t4p.models.sparse.pyramid import SparsePyramid
from t4p.models.sparse.tiles import in_tiles, is_large

# Without the decorator that keeps torch's compiler out, for which it would be imported: 2 CPU seconds.
_checkpoint = inspect.unwrap(checkpoint)
CONVS_OF_BLOCK = 2  # of kernel 3, each of which looks one voxel farther


def _as_they_are(features: Tensor) -> Tensor:
    return features


class SparseUNet(nn.Module):
    """Voxel features in, features of the same voxels out, with the bottleneck in the open.

    encode and decode are separate because the Text Querying Module sits between them. There is no final linear layer.
    A pyramid is not a tensor: under ZeRO-3 this module has to be a leaf (its parameters are gathered together).

    In evaluation without gradients a stage goes through a large scan in tiles: then only what goes in and out of each
    stage exists for all voxels at once.
    """

    def __init__(
        self,
        in_channels: int,
        plan: UNetPlan,
        norm: NormFactory = RowBatchNorm,
        *,
        activation_checkpointing: bool = False,
    ) -> None:
        """
        Args:
            activation_checkpointing: keep for the backward pass only what goes into each stage (stem, encoder and
                decoder stages) and compute the rest again there. Same losses, gradients and buffers, bit for bit.
        """
        super().__init__()
        self.plan = plan
        self.activation_checkpointing = activation_checkpointing
        self.num_levels = plan.num_strides + 1
        self.bottleneck_channels = plan.encoder_channels[-1]
        self.out_channels = plan.decoder_channels[-1]
        self.stem = SubmanifoldConv(in_channels, plan.stem_channels, plan.stem_kernel_size)
        self.stem_norm = norm(plan.stem_channels)
        level_channels = (plan.stem_channels, *plan.encoder_channels)
        self.encoder = nn.ModuleList(
            EncoderStage(below, channels, num_blocks, norm)
            for below, channels, num_blocks in zip(
                level_channels, plan.encoder_channels, plan.encoder_blocks, strict=False
            )
        )
        above_channels = (self.bottleneck_channels, *plan.decoder_channels)
        self.decoder = nn.ModuleList(
            DecoderStage(above, skip, channels, num_blocks, norm)
            for above, skip, channels, num_blocks in zip(
                above_channels, level_channels[-2::-1], plan.decoder_channels, plan.decoder_blocks, strict=False
            )
        )

    def forward(self, pyramid: SparsePyramid, features: Tensor) -> Tensor:
        """The plain encoder-decoder: (V, in_channels) to (V, out_channels)."""
        return self.decode(pyramid, self.encode(pyramid, features))

    def encode(self, pyramid: SparsePyramid, features: Tensor) -> tuple[Tensor, ...]:
        """Features of every level, finest first.

        Args:
            pyramid: num_levels levels, level 0 being the voxels of the features.
            features: (V, in_channels).

        Returns:
            num_levels tensors (V_l, C_l); the last is the bottleneck, h3D, with bottleneck_channels.

        Raises:
            ValueError: the pyramid's levels are not as many as the network's.
        """
        if pyramid.num_levels != self.num_levels:
            raise ValueError(
                f"the pyramid has {pyramid.num_levels} levels but the network {self.num_levels}; pass num_levels="
                f"{self.num_levels} to build_pyramid"
            )
        if self._is_in_tiles(pyramid, 0):
            reach = self.plan.stem_kernel_size // 2
            level_features = [in_tiles(self._stem_stage, pyramid, [(features, 0)], 0, reach)]
        else:
            level_features = [self._run(self._stem_stage, pyramid, features)]
        for level in range(self.num_levels - 1):
            level_features.append(self._encode_once(pyramid, level_features[-1], level))
        return tuple(level_features)

    def decode(
        self,
        pyramid: SparsePyramid,
        level_features: tuple[Tensor, ...],
        finish: Callable[[Tensor], Tensor] = _as_they_are,
    ) -> Tensor:
        """From the levels of encode, the bottleneck possibly replaced, to z3D.

        Args:
            finish: what becomes of the features (V, out_channels), each voxel by itself: narrow results of wide
                features need not wait for all of these.
        """
        features = level_features[-1]
        for level in range(self.num_levels - 1, 1, -1):
            features = self._decode_once(pyramid, features, level_features[level - 1], level)
        return self._decode_once(pyramid, features, level_features[0], 1, finish)

    def decode_once(self, pyramid: SparsePyramid, bottleneck: Tensor, skip: Tensor) -> Tensor:
        """The decoder's first stage: (Vb, C) and the encoder's features of the level above to that level's."""
        return self._decode_once(pyramid, bottleneck, skip, self.num_levels - 1)

    def _stem_stage(self, pyramid: SparsePyramid, features: Tensor) -> Tensor:
        return F.relu(self.stem_norm(self.stem(pyramid, features, 0)))

    def _encode_once(self, pyramid: SparsePyramid, features: Tensor, level: int) -> Tensor:
        stage = self.encoder[level]
        assert isinstance(stage, EncoderStage)
        if not self._is_in_tiles(pyramid, level):
            return self._run(stage, pyramid, features, level)
        reach = 2 * stage.reach  # of cells half as large
        return in_tiles(lambda tile, fine: stage(tile, fine, 0), pyramid, [(features, level)], level + 1, reach)

    def _decode_once(
        self,
        pyramid: SparsePyramid,
        features: Tensor,
        skip: Tensor,
        level: int,
        finish: Callable[[Tensor], Tensor] = _as_they_are,
    ) -> Tensor:
        stage = self.decoder[self.num_levels - 1 - level]
        assert isinstance(stage, DecoderStage)
        if not self._is_in_tiles(pyramid, level - 1):
            return finish(self._run(stage, pyramid, features, skip, level))
        return in_tiles(
            lambda tile, coarse, beside: finish(stage(tile, coarse, beside, 1)),
            pyramid,
            [(features, level), (skip, level - 1)],
            level - 1,
            stage.reach,
        )

    def _is_in_tiles(self, pyramid: SparsePyramid, level: int) -> bool:
        """Whether a stage whose finest level this is goes in tiles. In training a norm must see all voxels at once."""
        return not (torch.is_grad_enabled() or self.training) and is_large(pyramid, level)

    def _run(self, stage: Callable[..., Tensor], *arguments: SparsePyramid | Tensor | int) -> Tensor:
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return stage(*arguments)
        # No stage draws random numbers. The collectives of a synchronised norm run again too, in the same order on
        # every rank: a stage is computed again when the backward pass reaches it.
        return _checkpoint(
            stage, *arguments, use_reentrant=False, preserve_rng_state=False, context_fn=_recomputation_contexts
        )


def _recomputation_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of a stage's first forward pass, and of the one in the backward pass."""
    return nullcontext(), Recomputation()


class EncoderStage(nn.Module):
    """Halve the resolution, keeping the width, then residual blocks at the new width."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, norm: NormFactory) -> None:
        super().__init__()
        self.reach = CONVS_OF_BLOCK * num_blocks  # in voxels of the coarser level
        self.down = Downsample(in_channels, in_channels)
        self.norm = norm(in_channels)
        self.blocks = _residual_blocks(in_channels, out_channels, num_blocks, norm)

    def forward(self, pyramid: SparsePyramid, features: Tensor, level: int) -> Tensor:
        """(V_level, Cin) to (V_{level+1}, Cout)."""
        features = F.relu(self.norm(self.down(pyramid, features, level)))
        for block in self.blocks:
            features = block(pyramid, features, level + 1)
        return features


class DecoderStage(nn.Module):
    """Double the resolution, set the encoder's features of that level beside it, then residual blocks."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, num_blocks: int, norm: NormFactory
    ) -> None:
        super().__init__()
        self.reach = CONVS_OF_BLOCK * num_blocks  # in voxels of the finer level
        self.up = Upsample(in_channels, out_channels)
        self.norm = norm(out_channels)
        self.blocks = _residual_blocks(out_channels + skip_channels, out_channels, num_blocks, norm)

    def forward(self, pyramid: SparsePyramid, features: Tensor, skip: Tensor, level: int) -> Tensor:
        """features (V_level, Cin) and skip (V_{level-1}, Cskip) to (V_{level-1}, Cout)."""
        features = F.relu(self.norm(self.up(pyramid, features, level)))
        features = torch.cat([features, skip], dim=1)
        for block in self.blocks:
            features = block(pyramid, features, level - 1)
        return features


def _residual_blocks(in_channels: int, out_channels: int, num_blocks: int, norm: NormFactory) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * (num_blocks - 1)
    return nn.ModuleList(ResidualBlock(width, out_channels, norm) for width in widths)


class ResidualBlock(nn.Module):
    """conv 3, norm, ReLU, conv 3, norm, plus the input (projected where the width changes), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormFactory) -> None:
        super().__init__()
        self.conv1 = SubmanifoldConv(in_channels, out_channels, 3)
        self.norm1 = norm(out_channels)
        self.conv2 = SubmanifoldConv(out_channels, out_channels, 3)
        self.norm2 = norm(out_channels)
        self.projection = SubmanifoldConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.projection_norm = norm(out_channels) if in_channels != out_channels else None

    def forward(self, pyramid: SparsePyramid, features: Tensor, level: int) -> Tensor:
        """(V_level, Cin) to (V_level, Cout)."""
        residual = features
        if self.projection is not None and self.projection_norm is not None:
            residual = self.projection_norm(self.projection(pyramid, features, level))
        features = F.relu(self.norm1(self.conv1(pyramid, features, level)))
        features = self.norm2(self.conv2(pyramid, features, level))
        return F.relu(features + residual)
