"""Weights of a pre-training as the start of a fine-tuning: all of the 3D network but its head, and nothing missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shards.errors import MissingExtraError, UserError
from shards.terms import DatasetTerms
from t4p.config.files import changed_keys
from t4p.config.kinds import task_named
from t4p.config.tasks import FinetuneConfig
from t4p.distributed import broadcast_object, rank
from t4p.errors import CheckpointError, ConfigError
from t4p.models.exported import load_exported_network, read_terms
from t4p.models.hub import SCHEME, fetched, pinned
from t4p.runs.checkpoint import as_checkpoint, check_sizes, newest_checkpoint, read_state, verify_marker
from t4p.runs.universal import is_universal

Config = TypeVar("Config", bound=FinetuneConfig)

NETWORK = "net."
HEAD = "head."
# The keys that decide which weights there are, ...
SHAPING = ("model.norm", "model.point_features", "model.text_query.mlp_ratio", "model.unet")
# ... those that give the same weights another meaning (channels in another order, other heads), ...
MEANING = ("model.point_features", "model.text_query.num_heads")
FRAME = "data.frame"  # one of these where a point's place is a feature of it, ...
PLACES = {"position", "height"}
# ... and those that a fine-tuning may well change, but should not by accident.
TOLD = (FRAME, "model.voxel_size", "model.text_query.alpha", "model.text_query.beta", "model.text_query.template")


@dataclass(frozen=True, eq=False)
class StartingWeights:
    """The weights of a pre-training, and what they were trained as.

    Attributes:
        weights: parameters and buffers of the 3D network, by name.
        config: the configuration of the run, as dumped.
        towers_sha256: hash of the CLIP towers that it was trained against.
    """

    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    towers_sha256: str


def name_beginning(config: Config, say: Callable[[str], None]) -> Config:
    """The same configuration, `model.pretrained` being what stays the same while others go on. Collective.

    A run folder is replaced by its newest whole checkpoint, a name on the hub by that with its commit of now; and where
    this run has begun already, by what it began from: its checkpoints record which.

    Args:
        say: told on rank 0 what is taken.

    Raises:
        CheckpointError: the run folder has no whole checkpoint, or the hub does not give its file.
        MissingExtraError: huggingface_hub is not installed.
    """
    pretrained = config.model.pretrained
    if pretrained is None:
        return config
    problem: UserError | None = None
    if rank() == 0:
        try:
            pretrained = _began_from(config) or _lasting(pretrained, say)
        except (CheckpointError, MissingExtraError) as error:
            problem = error
    pretrained, problem = broadcast_object((pretrained, problem))
    if problem is not None:
        raise problem
    return config.model_copy(update={"model": config.model.model_copy(update={"pretrained": pretrained})})


def _lasting(pretrained: str, say: Callable[[str], None]) -> str:
    if not pretrained.startswith(SCHEME):
        return str(as_checkpoint(Path(pretrained), say))
    if (commit := pinned(pretrained)) != pretrained:
        say(f"{pretrained}: {commit} is taken, its commit of now")
    return commit


def _began_from(config: FinetuneConfig) -> str | None:
    """What the newest checkpoint of this run records as its beginning, if it lies in `model.pretrained`."""
    newest, _ = newest_checkpoint(Path(config.run.dir) / "checkpoints", check_sizes)
    if newest is None:
        return None
    began = read_state(newest).config.get("model", {}).get("pretrained")
    pretrained = str(config.model.pretrained)
    if began is None:
        return None
    if pretrained.startswith(SCHEME):
        lies_there = pretrained in (began, began.partition("@")[0])  # another revision may be another beginning
    else:
        lies_there = Path(began).parent.parent == Path(pretrained)
    return began if lies_there else None


def read_starting_weights(path: Path) -> StartingWeights:
    """Read a checkpoint's directory, or a file that `t4p checkpoint export` wrote.

    Raises:
        CheckpointError: it is neither, is damaged, was not written to its end, or is a universal checkpoint.
    """
    if path.is_dir():
        verify_marker(path)
        if is_universal(path):
            raise CheckpointError(f"{path}: a universal checkpoint; name the one that it was made from")
        state = read_state(path)
        from t4p.train.engine import saved_weights  # DeepSpeed, which reading an export must not need

        saved = saved_weights(path, state.config["train"]["zero_stage"])
        weights = {name.removeprefix(NETWORK): value for name, value in saved.items() if name.startswith(NETWORK)}
        return StartingWeights(weights, state.config, state.towers_sha256)
    exported = load_exported_network(path)
    return StartingWeights(exported.net.state_dict(), exported.config.model_dump(mode="json"), exported.towers_sha256)


def terms_of_beginning(config: FinetuneConfig) -> tuple[DatasetTerms, ...]:
    """The datasets that `model.pretrained` was trained on; none without it.

    Raises:
        CheckpointError: it cannot be read.
    """
    if config.model.pretrained is None:
        return ()
    path = fetched(config.model.pretrained)
    if not path.is_dir():
        return read_terms(path).all_datasets
    state = read_state(path)
    return state.terms.naming(state.config).all_datasets


def load_starting_weights(
    net: nn.Module, start: StartingWeights, config: FinetuneConfig, towers_sha256: str
) -> tuple[str, ...]:
    """Put them into a network of the same shape; its head, of another width, keeps the weights it has.

    Args:
        net: a Text4Point network, changed in place.
        config: configuration of the run that it is of.
        towers_sha256: hash of the CLIP towers whose text it will be asked.

    Returns:
        What a user should know: `key: then -> now` of settings that fit, and were others; and what did not train.

    Raises:
        ConfigError: the networks are not of one shape, the same weights would mean something else, the text tower is
            another one (names the keys that differ), or stages of the decoder never trained.
    """
    if start.towers_sha256 != towers_sha256:
        seed = " (random towers come from run.seed)" if config.model.clip.pretrained == "random" else ""
        raise ConfigError(
            f"model.pretrained was aligned with CLIP towers of sha256 {start.towers_sha256[:12]}, and model.clip gives "
            f"towers of {towers_sha256[:12]}: its features would not know these words; name the same model.clip{seed}"
        )
    changes = list(changed_keys(start.config, config.model_dump(mode="json")))
    wanted = {name: value for name, value in net.state_dict().items() if not name.startswith(HEAD)}
    found = {name: value for name, value in start.weights.items() if not name.startswith(HEAD)}
    misfits = sorted(
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or wanted[name].shape != found[name].shape
    )
    if misfits:
        listed = "".join(f"\n  {change}" for change in changes if _is_among(change.key, SHAPING))
        raise ConfigError(
            f"model.pretrained has another shape than this network: {len(misfits)} weight(s) do not fit, the first is "
            f"{misfits[0]}; set the keys that shape it as they were there{listed}"
        )
    meaning = (*MEANING, FRAME) if PLACES & set(config.model.point_features) else MEANING
    if others := [change for change in changes if _is_among(change.key, meaning)]:
        listed = "".join(f"\n  {change}" for change in others)
        raise ConfigError(
            "model.pretrained has weights of this shape that mean something else; set these keys as they were there"
            f"{listed}"
        )
    rested = _rested(start.config, config)
    with torch.no_grad():
        net.load_state_dict({**{name: v for name, v in net.state_dict().items() if name.startswith(HEAD)}, **found})
    return (*rested, *(str(change) for change in changes if _is_among(change.key, TOLD)))


def _rested(start: Mapping[str, Any], config: FinetuneConfig) -> tuple[str, ...]:
    """What to tell of decoder stages that did not train where the weights come from, and are read now.

    Raises:
        ConfigError: they have random weights.
    """
    begins = task_named(start.get("task", "pretrain"))
    if begins.finds != "boxes" or task_named(config.task).finds == "boxes" or config.model.unet.num_strides == 1:
        return ()
    told = "task: detection reads the first decoder stage alone, so the finer ones rested there"
    before = start["model"]["pretrained"]
    if before is None:
        raise ConfigError(
            f"model.pretrained is a fine-tuning whose finer decoder stages have random weights ({told}, and it began "
            "from scratch); name a pre-training, or a fine-tuning for labels or masks"
        )
    return (f"{told}, with the weights of {before}",)


def _is_among(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or in a section that is."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
