"""`t4p.network`: the 3D network that a configuration describes, for whoever trains it in a loop of his own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t4p.config.clip_models import read_clip_model
from t4p.config.files import load_network
from t4p.config.kinds import task_named
from t4p.config.network import ClipConfig
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError
from t4p.models.text4point import Text4Point, build_text4point


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
    described = config if isinstance(config, JobConfig) else load_network(config)
    num_outputs = task_named(described.task).out_dim(described)
    return build_text4point(described.model, _clip_width(described.model.clip), num_outputs)


def _clip_width(clip: ClipConfig) -> int:
    found = read_clip_model(clip)
    if found is None:
        raise ConfigError(
            f"model.clip.name is {clip.name!r}, whose width is not known here: there is no such file, or open_clip, "
            "which knows names, is not installed; give an existing .json, or install the extra `train`"
        )
    return found.embed_dim
