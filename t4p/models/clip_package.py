"""What this project uses of open_clip; the only file that imports it."""

from __future__ import annotations

from contextlib import nullcontext

from shards.errors import needs_extra
from t4p.models.held_back import as_if_absent, compiler_on_use, is_ours

_without_timm = as_if_absent("timm") if is_ours() else nullcontext()

with compiler_on_use(), _without_timm, needs_extra("train", "open_clip", "CLIP's towers, of images or of words,"):
    import open_clip
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    from open_clip.model import CLIP, CustomTextCLIP
    from open_clip.modified_resnet import AttentionPool2d, Bottleneck, ModifiedResNet
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
    from open_clip.transformer import (
        Attention,
        CustomResidualAttentionBlock,
        ResidualAttentionBlock,
        VisionTransformer,
    )

__all__ = [
    "CLIP",
    "OPENAI_DATASET_MEAN",
    "OPENAI_DATASET_STD",
    "Attention",
    "AttentionPool2d",
    "Bottleneck",
    "CustomResidualAttentionBlock",
    "CustomTextCLIP",
    "HFTokenizer",
    "ModifiedResNet",
    "ResidualAttentionBlock",
    "SimpleTokenizer",
    "VisionTransformer",
    "download_pretrained",
    "get_pretrained_cfg",
    "list_pretrained_tags_by_model",
    "open_clip",
]
