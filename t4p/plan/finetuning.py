"""The plan of a fine-tuning: its module on one of its samples; everything else as of a pre-training."""

from __future__ import annotations

from typing import Any

import torch  # noqa: TID253 - commands/main.py imports this module inside its command

from shards.errors import CallError, ShardError
from t4p.config.kinds import task_named
from t4p.config.tasks import FinetuneConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledBatch
from t4p.data.objects import ObjectBatch
from t4p.errors import ConfigError
from t4p.models.towers import zero_towers_of
from t4p.models.zeros import with_zeros
from t4p.plan.frames import figures_of
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
        recipe = task_named(config.task).load().build_recipe(config, Catalogue(config.data.urls), True)
        samples = figures_of(Catalogue(config.data.urls), recipe, _num_voxels, "samples")
    except (ShardError, CallError, ValueError) as error:
        raise ConfigError(
            f"data.shards: {error}; a fine-tuning is planned with its own samples, so name a dataset that can be read"
        ) from error
    require_batch(config, samples)
    checkpointing = config.model.unet.activation_checkpointing
    network, other = (
        measure_finetuning(with_checkpointing(config, on), recipe.join([]), samples.largest)
        for on in (checkpointing, not checkpointing)
    )
    return assemble(config, world, device_memory, hours, samples, network, other, 0)


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
