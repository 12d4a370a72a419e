"""From a checkpoint of a run to one file that anybody can use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from t4p.config.tasks import FinetuneConfig, JobConfig, PretrainConfig, config_of_task
from t4p.errors import CheckpointError, ConfigError
from t4p.models.clip import ClipTowers
from t4p.models.exported import for_one_process, write_exported
from t4p.models.prompts import PromptedLabels
from t4p.models.towers import load_towers_from
from t4p.runs.checkpoint import read_state, verify_marker
from t4p.runs.universal import is_universal
from t4p.tasks.semantic import build_module, load_pretrained
from t4p.train.engine import saved_weights


def export_checkpoint(
    checkpoint: Path, destination: Path, pretrained: str | None = None, finetuned_share: float = 1.0
) -> None:
    """Write the trained weights of a checkpoint and the embeddings of its labels into one safetensors file.

    Args:
        pretrained: the weights of the towers, where they are not where `model.clip.pretrained` says.
        finetuned_share: between 0 and 1. Below 1, for a fine-tuning with a head of words, the weights are a mean of
            those that it ended with and, for the rest, those that it began with (read from `model.pretrained`, which
            must be what it was): Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, where this is
            alpha. 0 is what the run began with.

    Raises:
        CheckpointError: the checkpoint is not whole, the towers are not those of the run, the weights that it began
            with are not there any more, or the file cannot be written.
        ClipError: the towers cannot be loaded.
        ConfigError: a share of what has no such beginning.
    """
    verify_marker(checkpoint)
    if is_universal(checkpoint):
        raise CheckpointError(f"{checkpoint}: a universal checkpoint; export the one that it was made from")
    state = read_state(checkpoint)
    try:
        config = config_of_task(state.config)
    except ValidationError as error:
        problem = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint}: its configuration is of another version of text4point ({problem}); export it with the "
            f"version that wrote it ({state.versions.get('text4point')})"
        ) from error
    if not 0 <= finetuned_share <= 1:
        raise ConfigError(f"share of the fine-tuned weights is {finetuned_share:g}; wanted a number from 0 to 1")
    if finetuned_share < 1:
        _require_beginning_in_words(checkpoint, config)
    clip = config.model.clip
    if pretrained is not None:
        clip = clip.model_copy(update={"pretrained": pretrained})
    towers = load_towers_from(clip, config.run.seed)
    if towers.sha256 != state.towers_sha256:
        raise CheckpointError(
            f"{checkpoint}: was trained against towers with sha256 {state.towers_sha256[:12]}, and {clip.name} with "
            f"{clip.pretrained} has {towers.sha256[:12]}; name the same weights with --pretrained"
        )
    weights = saved_weights(checkpoint, config.train.zero_stage)
    model = config.model
    assert isinstance(model.labels, tuple)  # resolved when the run began
    if isinstance(config, PretrainConfig):
        embeddings = towers.encode_labels(model.labels, model.text_query.template)
    else:
        if finetuned_share < 1:
            weights = blend(weights_at_start(config, towers), weights, finetuned_share)
        prompted = PromptedLabels(towers, model.labels, model.text_query.template, config.model.prompt_tokens)
        embeddings = prompted.embed(weights["prompt_tokens"])
    write_exported(
        destination, weights, embeddings, config, state.step, state.towers_sha256, state.versions, finetuned_share
    )


def blend(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share_of_end: float) -> dict[str, Tensor]:
    """The mean of two states of one module, tensor by tensor, running statistics too; what counts is that of `end`."""
    return {
        name: start[name].lerp(value, share_of_end) if value.is_floating_point() else value
        for name, value in end.items()
    }


def weights_at_start(config: FinetuneConfig, towers: ClipTowers) -> dict[str, Tensor]:
    """What a fine-tuning from `model.pretrained`, which is set, finds at its first step.

    Raises:
        CheckpointError: `model.pretrained` is not what the run began with any more.
    """
    with torch.random.fork_rng(devices=[]):
        module = build_module(config.model_copy(update={"model": for_one_process(config.model)}), towers)
    try:
        load_pretrained(module, config, towers.sha256)
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(
            f"a share of the fine-tuned weights needs those that the run began with, model.pretrained="
            f"{config.model.pretrained}: {error}; put them back, and call from the folder where the run was started"
        ) from error
    return module.state_dict()


def _require_beginning_in_words(checkpoint: Path, config: JobConfig) -> None:
    """Or there is no state before the fine-tuning that knows something."""
    if not isinstance(config, FinetuneConfig):
        problem = "is of a pre-training"
    elif config.model.pretrained is None:
        problem = "began with random weights"
    elif config.model.head != "words":
        problem = f"has model.head={config.model.head}, whose random weights say nothing at the beginning"
    elif config.model.prompt_tokens is not None:
        problem = f"has model.prompt_tokens={config.model.prompt_tokens}, random ones that say nothing at the beginning"
    else:
        return
    raise ConfigError(
        f"{checkpoint}: {problem}; a share of the fine-tuned weights (--finetuned-share) is for a run with "
        "model.pretrained, model.head=words and the template's prompt tokens (configs/finetune/few_labels.yaml)"
    )
