"""The frozen CLIP towers of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t4p.config.network import ClipConfig
from t4p.config.packaged import find_packaged

if TYPE_CHECKING:
    from t4p.models.clip import ClipTowers


def load_towers_from(clip: ClipConfig, seed: int) -> ClipTowers:
    """The towers that a configuration names; a JSON path and its weights may be of the packaged `configs/`."""
    from t4p.models.clip import load_towers  # open_clip, which reading an export must not need

    name = str(find_packaged(clip.name)) if clip.name.endswith(".json") else clip.name
    pretrained = str(find_packaged(clip.pretrained)) if clip.pretrained.startswith("configs/") else clip.pretrained
    return load_towers(name, pretrained, seed=seed, dense=clip.dense, output_stride=clip.output_stride)
