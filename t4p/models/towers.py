"""The frozen CLIP towers of a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shards.doors.files import read_file
from shards.doors.json_text import parse_json
from t4p.config.network import ClipConfig, NetworkConfig
from t4p.config.packaged import find_packaged
from t4p.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from t4p.models.clip import ClipTowers

# Words that fit any point: what a query is weighed against beside the labels. The first four that a tower has learnt;
# the later ones are for the small one of the rooms, which knows little else.
NEUTRAL_WORDS = ("object", "thing", "stuff", "texture", "room", "view", "picture", "photo")
NUM_NEUTRAL = 4
WORDS_SUFFIX = ".words.json"  # beside a model's JSON: {"words": [...]}, all that its text tower was trained with


def words_not_learnt(clip: ClipConfig, phrases: Sequence[str]) -> tuple[str, ...]:
    """The words of some phrases that a text tower of few words was never trained with: its answer is noise.

    Only towers with a list of their words beside their JSON have any; that which ships for the rooms is one.
    """
    try:
        name = Path(_name_of(clip))
    except ConfigError:
        return ()  # whoever loads the tower is told that it is not there
    listed = name.with_name(f"{name.stem}{WORDS_SUFFIX}")
    if name.suffix != ".json" or not listed.is_file():
        return ()
    learnt = set(parse_json(read_file(listed))["words"])
    asked = (word for phrase in phrases for word in re.findall(r"[^\W_]+", phrase.lower()))
    return tuple(word for word in dict.fromkeys(asked) if word not in learnt)


def neutral_words(model: NetworkConfig, towers: ClipTowers) -> dict[str, Tensor]:
    """(d,) embeddings of NUM_NEUTRAL words that fit any point and are no labels, by word."""
    unknown = {*words_not_learnt(model.clip, NEUTRAL_WORDS), *model.label_names}
    words = [word for word in NEUTRAL_WORDS if word not in unknown][:NUM_NEUTRAL]
    return dict(zip(words, towers.encode_labels(words, model.text_query.template), strict=True))


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
