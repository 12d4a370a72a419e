"""What every training job builds from its configuration, whatever its task: worker, streams and engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import torch
from torch import nn

from shards.errors import ShardError
from shards.schema import Frame
from shards.stores.store import StoreError
from shards.terms import DatasetTerms
from t4p.config.data import USUAL_BLOCK, PointDataConfig
from t4p.config.kinds import task_named
from t4p.config.run import TrainConfig
from t4p.config.tasks import JobConfig
from t4p.data.fetch import Catalogue
from t4p.data.ranks import Nodes
from t4p.data.read_ahead import ReadAhead, plan_read_ahead
from t4p.data.stream import Recipe, StreamSettings, TrainingStream, ValidationStream
from t4p.distributed import all_gather_ints, broadcast_object, nodes_of_ranks, rank, world_size
from t4p.errors import ConfigError, RunError
from t4p.heartbeat import beat, title_process
from t4p.runs.logs import StepRecord
from t4p.runs.progress import PlainLines, Show, print_line
from t4p.runs.universal import is_universal
from t4p.tasks.afterwards import random_towers
from t4p.train.parameter_groups import ONE_RATE, GroupSettings

if TYPE_CHECKING:  # DeepSpeed, which reading an export must not need
    from t4p.train.engine import Engine

SMALL_BLOCK = 64 << 10  # bytes: less than one frame
# A class of modules that has this attribute is gathered as a whole at ZeRO 3: between its modules travel objects that
# DeepSpeed's hooks do not see, or ranks with other numbers of samples would call other modules of it.
GATHERED_WHOLE = "gathered_whole"
NUM_LOOKS = 8  # frames that are looked at before a training

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")


def start_worker(train: TrainConfig) -> torch.device:
    """Become one worker of those that the environment describes; alone without one. Collective.

    Returns:
        Its device.
    """
    from t4p.train.engine import local_device, make_deterministic, start_process_group
    from t4p.train.watch import collective_timeout, ranks_have_met

    if train.deterministic:
        make_deterministic()  # before the process group, which makes the first use of CUDA
    title_process("t4p-rank")
    beat("waiting for the other ranks")
    start_process_group(collective_timeout(train.step_timeout))
    ranks_have_met()
    beat("loading the towers and the datasets")
    return local_device()


def run_watched(
    config: JobConfig, on_step: Callable[[StepRecord], None] | None = None, show: Show | None = None
) -> None:
    """Run the task of a configuration in a process that is a rank and nothing else. Collective.

    It is ended where no rank gets on for `train.step_timeout` seconds.

    Args:
        on_step, show: as the tasks' own `run` takes them.

    Raises:
        As the task does.
    """
    from t4p.train.watch import watching

    with watching(config.train.step_timeout):
        task_named(config.task).load().run(config, on_step=on_step, show=show)


def build_training_stream(
    config: JobConfig, catalogue: Catalogue, recipe: Recipe[Sample, Batch]
) -> TrainingStream[Sample, Batch]:
    """This rank's training stream. Collective.

    Raises:
        ConfigError: the global batch is larger than the dataset, or smaller than the world.
        RunError: somebody is counting voxels just now.
    """
    from t4p.train.engine import local_device

    settings = StreamSettings(
        num_workers=config.data.num_workers,
        num_streams=config.data.streams,
        shuffle_block=config.data.shuffle_block,
        global_batch_size=config.train.global_batch_size,
        grad_accum_steps=config.train.grad_accum_steps,
        rank=rank(),
        nodes=Nodes(nodes_of_ranks(local_device())),
        seed=config.run.seed,
        max_skip_fraction=config.data.max_skip_fraction,
        patience=config.train.step_timeout / 2,  # loaders are replaced before the ranks that wait give up
        read_ahead=_read_ahead(config.data, catalogue),
    )
    _require_same_counts(catalogue, local_device())
    try:
        return TrainingStream(catalogue, recipe, settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _require_same_counts(catalogue: Catalogue, device: torch.device) -> None:
    """Raise RunError where ranks have found different voxel counts: they would share out a batch differently."""
    digest = hashlib.blake2b(repr(catalogue.voxels_sha256).encode(), digest_size=7).digest()
    if len(set(map(tuple, all_gather_ints([int.from_bytes(digest)], device)))) > 1:
        raise RunError(
            f"{', '.join(catalogue.urls)}: ranks see different voxel counts, so somebody is counting just now; start "
            "again when that is done"
        )


def _read_ahead(data: PointDataConfig, catalogue: Catalogue) -> ReadAhead | None:
    """Where this node keeps what it reads ahead; None where nothing lies in object storage. Collective."""
    run = broadcast_object(uuid4().hex)
    say = print_line if rank() == 0 else lambda _: None
    return plan_read_ahead(catalogue, data.cache_dir, data.cache_bytes, run, say)


def build_validation_stream(
    config: JobConfig, catalogue: Catalogue, recipe: Recipe[Sample, Batch]
) -> ValidationStream[Sample, Batch]:
    """This rank's part of every sample of a catalogue, one at a time. Collective."""
    from t4p.train.engine import local_device

    return ValidationStream(
        catalogue,
        recipe,
        config.data.num_workers,
        rank(),
        Nodes(nodes_of_ranks(local_device())),
        config.train.step_timeout / 2,
        _read_ahead(config.data, catalogue),
        config.data.shuffle_block,
    )


def tell_same_data(config: JobConfig) -> None:
    """Say where validation looks at what is trained on: its scores then tell what was learnt by heart."""
    shared = {url.rstrip("/") for url in config.data.urls} & {url.rstrip("/") for url in config.data.validation_shards}
    if shared and rank() == 0:
        print_line(f"{', '.join(sorted(shared))}: trained on and validated on, so scores tell what is known by heart")


def tell_small_blocks(config: JobConfig) -> None:
    """Say where blocks are so small that every sample is read alone: version 0.1.0 counted them in samples."""
    if rank() == 0 and config.data.shuffle_block < SMALL_BLOCK:
        print_line(
            f"data.shuffle_block is {config.data.shuffle_block} bytes, so samples are read one by one; the default is "
            f"{USUAL_BLOCK} (it counted samples in version 0.1.0)"
        )


def tell_missing_poses(config: JobConfig, catalogue: Catalogue) -> None:
    """Say, once, how many of a few frames have no pose where the points are wanted in the world."""
    if rank() != 0 or config.data.frame != "world":
        return
    posed = []
    for place in catalogue.spread(NUM_LOOKS):
        try:
            stored = catalogue.fetch(*place)
        except StoreError:
            break  # the next would take as long to fail; training says what is wrong there
        except ShardError:  # training counts what is broken
            continue
        if isinstance(stored, Frame):
            posed.append(stored.world_from_camera is not None)
    if not all(posed):
        print_line(
            f"data.frame is world, and {posed.count(False)} of {len(posed)} frames looked at have no pose: their "
            "points stay in camera axes"
        )


def build_engine(
    module: nn.Module,
    train: TrainConfig,
    checkpoint: Path | None,
    groups: GroupSettings = ONE_RATE,
) -> Engine:
    """The module of a task under DeepSpeed; parts that say GATHERED_WHOLE are leaves at ZeRO 3. Collective.

    Args:
        checkpoint: what it will load, if anything.
        groups: of the optimizer.
    """
    from t4p.train.engine import Engine, EngineSettings

    settings = EngineSettings(
        zero_stage=train.zero_stage,
        precision=train.precision,
        gradient_clipping=train.gradient_clipping,
        weight_decay=train.weight_decay,
        grad_accum_steps=train.grad_accum_steps,
        groups=groups,
    )
    universal = checkpoint is not None and is_universal(checkpoint)
    leaves = tuple(dict.fromkeys(type(part) for part in module.modules() if getattr(part, GATHERED_WHOLE, False)))
    return Engine(module, settings, world_size(), leaf_classes=leaves, load_universal=universal)


def run_training(
    config: JobConfig,
    wrap: Callable[[Path | None], Engine],
    task: Any,
    stream: TrainingStream[Any, Any],
    catalogue: Catalogue,
    towers_sha256: str,
    on_step: Callable[[StepRecord], None] | None,
    show: Show | None = None,
    began_with: Callable[[], tuple[DatasetTerms, ...]] = tuple,
) -> None:
    """Train from the newest checkpoint of the run folder, or from the beginning, to the last step. Collective.

    Args:
        wrap: the task's module under DeepSpeed, given the checkpoint that will be loaded.
        task: what the loop asks of it, `t4p.train.loop.Task`.
        stream: batches of the training data.
        catalogue: the datasets that it is read from.
        towers_sha256: hash of the frozen towers' weights.
        on_step: called on every rank after every step.
        show: told on rank 0 how it goes; by default plain lines are printed.
        began_with: of a run that begins, the datasets that its first weights were trained on.
    """
    from t4p.train.loop import train
    from t4p.train.run_folder import open_run

    tell_same_data(config)
    tell_small_blocks(config)
    if rank() == 0 and (sentence := random_towers(config)) is not None:
        print_line(sentence)
    show = show or PlainLines(print_line)
    samples = (catalogue.shards_sha256, towers_sha256, catalogue.terms, began_with)
    with open_run(config, wrap, *samples, on_step, show) as (engine, settings, log):
        train(engine, task, stream, config.train, settings, log)
