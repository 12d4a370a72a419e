"""Dense features of CLIP image towers: the value path of the last attention, read off at every cell.

CLIP trains one pooled embedding per image. The value and output projections that lead into it, applied to every cell
instead of to the attention-weighted mean, place the cells in the same joint space (the reading of MaskCLIP).
"""

from collections.abc import Iterable
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from t4p.config.clip_models import DEFAULT_OUTPUT_STRIDE, OutputStride, problem_of_reading
from t4p.errors import ClipError
from t4p.models.clip_package import (
    Attention,
    AttentionPool2d,
    Bottleneck,
    CustomResidualAttentionBlock,
    ModifiedResNet,
    ResidualAttentionBlock,
    VisionTransformer,
)

DenseReading = Literal["value", "value-residual"]


class DenseTower(Protocol):
    """An image tower read at every cell."""

    cell_size: int  # pixels per side of a cell

    def features(self, images: Tensor) -> Tensor:
        """Map images (F, 3, H, W), H and W multiples of `cell_size`, to (F, d, H / cell_size, W / cell_size)."""
        ...


class DenseResNet:
    """RN50 family: the attention pool's value and output projections as 1x1 convolutions on the last feature map.

    No attention and no positions (the pool's positions fit one image size only, open_clip never resizes them), so any
    image whose sides are multiples of `cell_size` works.

    With an output stride of 16 layer4 keeps the resolution of its input, with 8 layer3 does so too: the same weights,
    not dilated, without the average poolings that halve. Only this reading changes; the global embedding does not.
    """

    def __init__(self, visual: ModifiedResNet, output_stride: OutputStride = DEFAULT_OUTPUT_STRIDE) -> None:
        self._visual = visual
        self.cell_size: int = output_stride

    def features(self, images: Tensor) -> Tensor:
        return self.project(self.feature_map(images))

    def feature_map(self, images: Tensor) -> Tensor:
        """Map images (F, 3, H, W) to the output of layer4, (F, C, H / cell_size, W / cell_size)."""
        # Not forward_intermediates: its early stop is inverted in open_clip 3.3.0 for this tower.
        visual = self._visual
        features = visual.layer2(visual.layer1(visual.stem(images)))
        features = visual.layer3(features) if self.cell_size > 8 else _without_stride(visual.layer3, features)
        return visual.layer4(features) if self.cell_size > 16 else _without_stride(visual.layer4, features)

    def project(self, feature_map: Tensor) -> Tensor:
        """Map layer4 features (F, C, Hc, Wc) to the joint space, (F, d, Hc, Wc)."""
        pool = self._visual.attnpool
        values = F.conv2d(feature_map, pool.v_proj.weight[:, :, None, None], pool.v_proj.bias)
        return F.conv2d(values, pool.c_proj.weight[:, :, None, None], pool.c_proj.bias)


def _without_stride(layer: Iterable[Bottleneck], features: Tensor) -> Tensor:
    """Run a layer of a ModifiedResNet at the resolution of its input (F, C, H, W).

    Only its first block halves, by average poolings before two of its 1x1 convolutions. They are stepped over here,
    not taken out: the tower's own forward pass, which gives the global embedding, needs them.
    """
    first, *rest = layer
    x = first.act1(first.bn1(first.conv1(features)))
    x = first.act2(first.bn2(first.conv2(x)))
    x = first.bn3(first.conv3(x))
    _, shortcut_conv, shortcut_norm = first.downsample
    x = first.act3(x + shortcut_norm(shortcut_conv(features)))
    for block in rest:
        x = block(x)
    return x


class DenseViT:
    """ViT family: the last block's value path, then the tower's own final norm and projection.

    "value" keeps the value path alone; "value-residual" keeps the block's residual and MLP as well, as the reference
    reading does. Positions are resized to the image's grid, so any multiple of the patch size works.
    """

    def __init__(self, visual: VisionTransformer, reading: DenseReading) -> None:
        self._visual = visual
        self._reading = reading
        self.cell_size = int(visual.patch_size[0])

    def features(self, images: Tensor) -> Tensor:
        rows, columns = images.shape[-2] // self.cell_size, images.shape[-1] // self.cell_size
        cells = self.project(self.tokens(images)[:, 1:])
        return cells.transpose(1, 2).unflatten(2, (rows, columns))

    def tokens(self, images: Tensor) -> Tensor:
        """Map images (F, 3, H, W) to what enters the last block, (F, 1 + cells, width); the class token comes first."""
        visual = self._visual
        patches = visual.conv1(images)
        grid = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1)
        x = visual.ln_pre(x + self._positions(grid).to(x.dtype))
        for block in visual.transformer.resblocks[:-1]:
            x = block(x)
        return x

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens before the last block (F, L, width) to the joint space (F, L, d), each on its own."""
        visual = self._visual
        block = visual.transformer.resblocks[-1]
        x = _value_path(block, tokens)
        if self._reading == "value-residual":
            x = tokens + x
            x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return visual.ln_post(x) @ visual.proj

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1 + cells, width) for a grid of (rows, columns), resized as open_clip resizes them."""
        positions = self._visual.positional_embedding
        native_grid = tuple(self._visual.grid_size)
        if grid == native_grid:
            return positions
        image_positions = positions[1:].T.unflatten(1, native_grid)[None]
        resized = F.interpolate(image_positions, size=grid, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([positions[:1], resized[0].flatten(1).T])


def _value_path(block: ResidualAttentionBlock | CustomResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """What the block's attention adds to each token (F, L, width) if the token attends to itself alone."""
    attention = block.attn
    width = tokens.shape[-1]
    bias = attention.in_proj_bias
    value = F.linear(
        block.ln_1(tokens), attention.in_proj_weight[2 * width :], None if bias is None else bias[2 * width :]
    )
    if isinstance(attention, Attention):  # open_clip's own attention, in "custom" blocks
        if attention.head_scale is not None:
            value = (value.unflatten(-1, (attention.num_heads, -1)) * attention.head_scale[:, 0]).flatten(-2)
        return block.ls_1(block.ln_attn(attention.out_proj(attention.ln_inner(value))))
    return block.ls_1(attention.out_proj(value))


def build_dense_tower(
    visual: nn.Module, reading: DenseReading, name: str, output_stride: OutputStride = DEFAULT_OUTPUT_STRIDE
) -> DenseTower:
    """Choose the dense reading for an image tower of open_clip.

    Args:
        visual: the image tower; it is referred to, not copied.
        reading: "value", or "value-residual" (ViT only).
        name: the model's name, for messages.
        output_stride: pixels per cell of a ResNet tower; anything but the default is for those alone.

    Raises:
        ClipError: the reading or the stride is unknown or does not exist for this tower, or the tower's kind has no
            dense reading.
    """
    if reading not in get_args(DenseReading):
        raise ClipError(f"dense reading is {reading!r}; choose one of {', '.join(get_args(DenseReading))}")
    if output_stride not in get_args(OutputStride):
        raise ClipError(
            f"output stride is {output_stride!r}; choose one of {', '.join(map(str, get_args(OutputStride)))}"
        )
    if isinstance(visual, ModifiedResNet) and isinstance(visual.attnpool, AttentionPool2d):
        if problem := problem_of_reading("resnet", reading, output_stride, 0):
            raise ClipError(f"{name}: {problem}")
        return DenseResNet(visual, output_stride)
    if isinstance(visual, VisionTransformer):
        if problem := problem_of_reading("vit", reading, output_stride, visual.patch_size[0]):
            raise ClipError(f"{name}: {problem}")
        problem = _unsupported_vit_feature(visual)
        if problem:
            raise ClipError(
                f"{name}: no dense reading for a ViT tower with {problem}; use a plain one such as ViT-B-16"
            )
        return DenseViT(visual, reading)
    raise ClipError(
        f"{name}: its image tower is {type(visual).__name__}; dense features are known for open_clip's "
        "ModifiedResNet (RN50, ...) and VisionTransformer (ViT-B-16, ...) only; use one of those"
    )


def _unsupported_vit_feature(visual: VisionTransformer) -> str | None:
    """Name what keeps the value path of this ViT from being its pooled path, if anything does."""
    if visual.attn_pool is not None:
        return "attentional pooling"
    if visual.pool_type not in ("tok", "avg"):
        return f"pool_type {visual.pool_type!r}"
    if visual.patch_size[0] != visual.patch_size[1]:
        return f"patches of {visual.patch_size[0]}x{visual.patch_size[1]} pixels"
    if not visual.transformer.batch_first:
        return "sequence-first blocks"
    if not visual.transformer.resblocks:
        return "no blocks"
    if getattr(visual.transformer.resblocks[-1].attn, "scaled_cosine", False):
        return "scaled cosine attention"  # open_clip 3.3.0 cannot run it: bmm on 4-D tensors
    return None
