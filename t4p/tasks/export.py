"""From a checkpoint of a run to one file that anybody can use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from shards.results import check_result
from t4p.config.clip_models import terms_of_towers
from t4p.config.kinds import config_of_task, task_named
from t4p.errors import CheckpointError, ConfigError
from t4p.models.exported import write_exported
from t4p.models.towers import load_towers_from, neutral_words
from t4p.runs.checkpoint import read_state, verify_marker
from t4p.runs.universal import is_universal
from t4p.train.engine import saved_weights


def export_checkpoint(
    checkpoint: Path,
    destination: Path,
    pretrained: str | None = None,
    finetuned_share: float = 1.0,
    force: bool = False,
) -> None:
    """Write the trained weights of a checkpoint and the embeddings of its labels into one safetensors file.

    Args:
        pretrained: the weights of the towers, where they are not where `model.clip.pretrained` says.
        finetuned_share: between 0 and 1. Below 1, for a fine-tuning with a head of words, the weights are a mean of
            those that it ended with and, for the rest, those that it began with (read from `model.pretrained`, which
            must be what it was): Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, where this is
            alpha. 0 is what the run began with.
        force: replace a file that is there.

    Raises:
        CheckpointError: the checkpoint is not whole or holds what none does, the towers are not those of the run, or
            the weights that it began with are not there any more.
        CallError, ResultError: a file is there, or it cannot be written.
        ClipError: the towers cannot be loaded.
        ConfigError: a share of what has no such beginning.
    """
    check_result(destination, force)
    verify_marker(checkpoint)
    if is_universal(checkpoint):
        raise CheckpointError(f"{checkpoint}: a universal checkpoint; export the one that it was made from")
    state = read_state(checkpoint)
    try:
        config = config_of_task(state.config)
    except (ConfigError, ValidationError) as error:
        problem = str(error).splitlines()[0]
        raise CheckpointError(
            f"{checkpoint}: its configuration is of another version of text4point ({problem}); export it with the "
            f"version that wrote it ({state.versions.get('text4point')})"
        ) from error
    if not 0 <= finetuned_share <= 1:
        raise ConfigError(f"share of the fine-tuned weights is {finetuned_share:g}; wanted a number from 0 to 1")
    task = task_named(config.task).load()
    if finetuned_share < 1 and (problem := task.problem_of_start(config)):
        raise ConfigError(
            f"{checkpoint}: {problem}; a share of the fine-tuned weights (--finetuned-share) is for a run with "
            "model.pretrained, model.head=words and the template's prompt tokens (configs/finetune/few_labels.yaml)"
        )
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
    if finetuned_share < 1:
        weights = blend(task.weights_at_start(config, towers), weights, finetuned_share)
    embeddings = task.embed_labels(config, towers, weights)
    write_exported(
        destination,
        weights,
        embeddings,
        config,
        state.step,
        state.towers_sha256,
        state.versions,
        finetuned_share,
        force,
        neutral_words(config.model, towers),
        replace(state.terms.naming(state.config), towers=terms_of_towers(config.model.clip)),
    )


def blend(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share_of_end: float) -> dict[str, Tensor]:
    """The mean of two states of one module, tensor by tensor, running statistics too; what counts is that of `end`."""
    return {
        name: start[name].lerp(value, share_of_end) if value.is_floating_point() else value
        for name, value in end.items()
    }
