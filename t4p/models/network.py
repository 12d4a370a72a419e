"""`t4p.network`: the 3D network that a configuration describes, for whoever trains it in a loop of his own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from t4p.config.files import find_packaged, load_config_of
from t4p.config.network import ClipConfig, ModelConfig, SemanticModelConfig
from t4p.config.section import Section
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError
from t4p.models.text4point import Text4Point, build_text4point


class _Lenient(Section):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _TaskAlone(_Lenient):
    task: str = "pretrain"


class _PretrainNetwork(_Lenient):
    model: ModelConfig = ModelConfig()


class _SemanticNetwork(_Lenient):
    model: SemanticModelConfig = SemanticModelConfig()


def network(config: str | Path | Mapping[str, Any] | JobConfig) -> Text4Point:
    """The 3D network of a configuration, in training mode, with random weights of torch's global generator.

    Its forward takes `(voxel_coords, voxel_features, text)` and returns `(h3D_hat, z3D)`: see
    `t4p.models.text4point.Text4Point.forward`. The width of CLIP, which h3D_hat and `text` share, is that of the model
    in `model.clip.name`; no tower is loaded.

    Args:
        config: a YAML file (a path below `configs/` may be of the installed package), its tree as a mapping, or a
            configuration object. Only `task` and `model` are read; data, run and the rest may be left out.

    Raises:
        ConfigError: the `model` section is wrong, lists every problem; the task is unknown; the network cannot be
            built.
    """
    model, num_outputs = _described(config)
    return build_text4point(model, _clip_width(model.clip), num_outputs)


def _described(config: str | Path | Mapping[str, Any] | JobConfig) -> tuple[ModelConfig | SemanticModelConfig, int]:
    """The section of the network, and the width of z3D."""
    if isinstance(config, JobConfig):
        config = config.model_dump(mode="json")
    task = _read(_TaskAlone, config).task
    if task == "pretrain":
        pretrain = _read(_PretrainNetwork, config).model
        return pretrain, pretrain.embed_dim_d
    if task == "semantic":
        semantic = _read(_SemanticNetwork, config).model
        return semantic, len(semantic.labels)
    raise ConfigError(f"task is {task!r}; known: pretrain, semantic")


def _read(schema: type[Any], config: str | Path | Mapping[str, Any]) -> Any:
    if not isinstance(config, Mapping):
        return load_config_of(schema, [config])
    try:
        return schema.model_validate(config)
    except ValidationError as error:
        raise ConfigError(str(error)) from error


def _clip_width(clip: ClipConfig) -> int:
    if clip.name.endswith(".json"):
        document = json.loads(find_packaged(clip.name).read_text(encoding="utf-8"))
        return int(document.get("model_cfg", document)["embed_dim"])
    from t4p.models.clip import load_towers

    return load_towers(clip.name, "random").embed_dim
