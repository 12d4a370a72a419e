"""The plan of a fine-tuning: its module on one of its samples; everything else as of a pre-training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch  # noqa: TID253 - commands/main.py imports this module inside its command

from shards.errors import CallError, ShardError
from t4p.config.kinds import task_named
from t4p.config.tasks import FinetuneConfig
from t4p.data.fetch import Catalogue
from t4p.data.few_labels import training_catalogue
from t4p.data.labelled import LabelledBatch
from t4p.data.objects import ObjectBatch
from t4p.data.stream import Recipe
from t4p.errors import ConfigError
from t4p.models.towers import zero_towers_of
from t4p.models.zeros import with_zeros
from t4p.plan.frames import FrameFigures, figures_of
from t4p.plan.job import JobPlan, assemble, require_batch, spread, usual_hours, with_checkpointing
from t4p.plan.measure import NetworkFigures, measure_module


def plan_finetuning(
    config: FinetuneConfig, num_nodes: int, gpus_per_node: int, device_memory: int, hours: float | None
) -> JobPlan:
    """As `plan_job`, of any task that fine-tunes. Samples are the dataset's own: nobody can draw its scenes.

    Raises:
        ConfigError: as `plan_job`; or data.shards cannot be read.
    """
    world = spread(config, num_nodes, gpus_per_node)
    hours = usual_hours(config, world.size) if hours is None else hours
    try:
        catalogue = training_catalogue(config.data, config.run.seed)
        samples = look_at_samples(config, catalogue)
        nothing = _recipe(config, catalogue, 0.0).join([])
    except (ShardError, CallError, ValueError) as error:
        raise ConfigError(
            f"data.shards: {error}; a fine-tuning is planned with its own samples, so name a dataset that can be read"
        ) from error
    require_batch(config, samples)
    checkpointing = config.model.unet.activation_checkpointing
    network, other = (
        measure_finetuning(with_checkpointing(config, on), nothing, samples.largest)
        for on in (checkpointing, not checkpointing)
    )
    return assemble(config, world, device_memory, hours, samples, network, other, 0)


def look_at_samples(config: FinetuneConfig, catalogue: Catalogue) -> FrameFigures:
    """Load a few samples as training would. Of `data.augment.mix` the largest is one of two, the others are means.

    Raises:
        ShardError, CallError, ValueError: as `figures_of`.
    """
    alone = figures_of(catalogue, _recipe(config, catalogue, 0.0), _num_voxels, "samples")
    if not (mix := config.data.augment.mix):
        return alone
    mixed = figures_of(catalogue, _recipe(config, catalogue, 1.0), _num_voxels, "samples")
    return replace(
        mixed,
        mean_voxels=(1 - mix) * alone.mean_voxels + mix * mixed.mean_voxels,
        stored_bytes=(1 + mix) * alone.stored_bytes,
        load_seconds=(1 - mix) * alone.load_seconds + mix * mixed.load_seconds,
    )


def _recipe(config: FinetuneConfig, catalogue: Catalogue, mix: float) -> Recipe[Any, Any]:
    """That of the training, with another share of mixed samples."""
    augment = config.data.augment.model_copy(update={"mix": mix})
    data = config.data.model_copy(update={"augment": augment})
    recipe: Recipe[Any, Any] = (
        task_named(config.task).load().build_recipe(config.model_copy(update={"data": data}), catalogue, True)
    )
    return recipe


def measure_finetuning(config: FinetuneConfig, nothing: Any, sample: Any) -> NetworkFigures:
    """Run the module of a fine-tuning on one sample, forward and backward, on the CPU.

    Args:
        nothing, sample: batches of no sample and of one.
    """
    task = task_named(config.task).load()
    towers = zero_towers_of(config.model.clip)
    module = with_zeros(lambda: task.build_module(config, towers))
    precision = torch.bfloat16 if config.train.precision == "bf16" else None
    inputs_of = task.build_task(config, torch.device("cpu"), None).inputs
    return measure_module(
        module, module.groups(config.train), module.net, inputs_of, nothing, sample, towers, precision
    )


def _num_voxels(batch: LabelledBatch | ObjectBatch) -> int:
    labelled = batch.labelled if isinstance(batch, ObjectBatch) else batch
    return len(labelled.voxel_coords)
