"""From a checkpoint of a run to one file that anybody can use."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from t4p.config import PretrainConfig, config_of_task
from t4p.errors import CheckpointError
from t4p.models.exported import write_exported
from t4p.models.prompts import PromptedLabels
from t4p.tasks.pretrain import load_towers_from
from t4p.train.checkpoint import read_state, verify_marker
from t4p.train.engine import saved_weights
from t4p.train.universal import is_universal


def export_checkpoint(checkpoint: Path, destination: Path, pretrained: str | None = None) -> None:
    """Write the trained weights of a checkpoint and the embeddings of its labels into one safetensors file.

    Args:
        pretrained: the weights of the towers, where they are not where `model.clip.pretrained` says.

    Raises:
        CheckpointError: the checkpoint is not whole, the towers are not those of the run, or the file cannot be
            written.
        ClipError: the towers cannot be loaded.
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
        prompted = PromptedLabels(towers, model.labels, model.text_query.template, config.model.prompt_tokens)
        embeddings = prompted.embed(weights["prompt_tokens"])
    write_exported(destination, weights, embeddings, config, state.step, state.towers_sha256, state.versions)
