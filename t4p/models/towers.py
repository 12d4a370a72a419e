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

    name = _name_of(clip)
    pretrained = str(find_packaged(clip.pretrained)) if clip.pretrained.startswith("configs/") else clip.pretrained
    return load_towers(name, pretrained, seed=seed, dense=clip.dense, output_stride=clip.output_stride)


def zero_towers_of(clip: ClipConfig) -> ClipTowers:
    """The same towers with zeros for weights, whatever their weights are: for sizes."""
    from t4p.models.clip import build_zero_towers

    return build_zero_towers(_name_of(clip), dense=clip.dense, output_stride=clip.output_stride)


def _name_of(clip: ClipConfig) -> str:
    return str(find_packaged(clip.name)) if clip.name.endswith(".json") else clip.name
