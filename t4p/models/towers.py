"""The frozen CLIP towers of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from t4p.config.clip_models import words_not_learnt
from t4p.config.network import ClipConfig, NetworkConfig
from t4p.config.packaged import find_packaged

if TYPE_CHECKING:
    from torch import Tensor

    from t4p.models.clip import ClipTowers

# Words that fit any point: what a query is weighed against beside the labels. The first four that a tower has learnt;
# the later ones are for the small one of the rooms, which knows little else.
NEUTRAL_WORDS = ("object", "thing", "stuff", "texture", "room", "view", "picture", "photo")
NUM_NEUTRAL = 4


def neutral_words(model: NetworkConfig, towers: ClipTowers) -> dict[str, Tensor]:
    """(d,) embeddings of NUM_NEUTRAL words that fit any point and are no labels nor their synonyms, by word."""
    synonyms = (word for words in model.label_words.values() for word in words)
    unknown = {*words_not_learnt(model.clip, NEUTRAL_WORDS), *model.label_names, *synonyms}
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
