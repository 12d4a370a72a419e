"""A plan: what every ZeRO stage of a job holds, sends and writes, and what the job needs from storage and network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from t4p.config.check import problems_of_world
from t4p.config.tasks import JobConfig, PretrainConfig
from t4p.data.order import steps_per_epoch
from t4p.errors import ConfigError
from t4p.models.towers import zero_towers_of
from t4p.plan.frames import FrameFigures, look_at_frames
from t4p.plan.measure import NetworkFigures, PassBytes, drawn_ends, drawn_pairs, frozen_part, measure_network
from t4p.plan.pairs import PairGather, norm_bytes, pair_gather
from t4p.plan.zero import (
    STAGES,
    Cluster,
    StateBytes,
    Traffic,
    ZeroStage,
    checkpoint_bytes,
    state_bytes,
    traffic,
)
from t4p.tasks.pretrain import build_sample_settings
from t4p.train.buckets import BUCKET_SIZE, STAGE_3_WHOLE_BELOW

AnyConfig = TypeVar("AnyConfig", bound=JobConfig)

# Estimates, made without a GPU: CUDA's context, cuBLAS and NCCL; and what the caching allocator cannot use.
RUNTIME_BYTES = 3 * 2**29
ALLOCATOR_SHARE = 0.1
# PointContrast's pace, the closest work with a known one: 60,000 steps of 32 frames in 40 hours on 8 V100s.
GPU_SECONDS_PER_FRAME = 0.6


@dataclass(frozen=True)
class World:
    """The ranks of the job and their share of a batch.

    Attributes:
        frames_per_rank: frames of a micro-batch, on the rank that has most.
        cpu: ranks are processes on the CPU, not GPUs.
    """

    num_nodes: int
    ranks_per_node: int
    cpu: bool
    frames_per_rank: int

    @property
    def size(self) -> int:
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank at its highest.

    Attributes:
        peak: the highest of forward and backward pass, its end, the optimizer's step, and the frozen tower's turn.
        reserve: on a GPU, for what no tensor accounts for; an estimate.
        fits: peak and reserve are within the device's memory; None on the CPU.
    """

    peak: int
    reserve: int
    fits: bool | None


@dataclass(frozen=True)
class StagePlan:
    """One ZeRO stage.

    Attributes:
        memory: with activation checkpointing as configured.
        memory_other: with it switched the other way.
        sent_bytes: by one rank in one step: gradients, parameters, pairs and norms.
        checkpoint_bytes: bytes of one checkpoint, all ranks together.
    """

    stage: ZeroStage
    state: StateBytes
    memory: RankMemory
    memory_other: RankMemory
    traffic: Traffic
    sent_bytes: int
    checkpoint_bytes: int


@dataclass(frozen=True)
class Needs:
    """What the job needs to take its steps in the time given.

    Attributes:
        frames_per_second: frames a second of all ranks.
        stored_bytes_per_second: from object storage, of all ranks.
        loader_processes: loader processes of all ranks, at the speed of this machine's CPU.
        sent_bytes_per_second: by one rank at the configured stage, averaged over the step. A ring over several nodes
            crosses each node's link once, so a node's link carries as much.
    """

    hours: float
    steps_per_second: float
    frames_per_second: float
    stored_bytes_per_second: float
    loader_processes: float
    sent_bytes_per_second: float


@dataclass(frozen=True, eq=False)
class JobPlan:
    """Everything that `t4p plan` prints.

    Attributes:
        micro_batch: bytes of the configured activation checkpointing, on the rank with most frames.
        loss_e, loss_d: what the losses of a pre-training gather; None of a fine-tuning.
        norm_bytes: sent by one rank in one step for synchronised norms.
    """

    config: JobConfig
    world: World
    device_memory: int
    frames: FrameFigures
    network: NetworkFigures
    micro_batch: PassBytes
    loss_e: PairGather | None
    loss_d: PairGather | None
    norm_bytes: int
    stages: tuple[StagePlan, ...]
    needs: Needs

    @property
    def num_parameters(self) -> int:
        return sum(map(sum, self.network.groups))

    @property
    def configured(self) -> StagePlan:
        """The stage that the configuration asks for."""
        return self.stages[self.config.train.zero_stage]

    def to_json(self) -> dict[str, Any]:
        """Plain values: bytes, frames, seconds."""
        frames: dict[str, Any] = {
            "source": self.frames.source,
            "problem": self.frames.problem,
            "voxels_largest": self.frames.largest_voxels,
            "voxels_mean": self.frames.mean_voxels,
            "stored_bytes": self.frames.stored_bytes,
            "load_seconds": self.frames.load_seconds,
            "num_samples": self.frames.num_samples,
        }
        if isinstance(self.config, PretrainConfig):
            frames["pairs_e"], frames["pairs_d"] = drawn_pairs(self.config.loss, self.frames.largest)
        return {
            "world_size": self.world.size,
            "frames_per_rank": self.world.frames_per_rank,
            "num_parameters": self.num_parameters,
            "zero_stage": self.config.train.zero_stage,
            "activation_checkpointing": self.config.model.unet.activation_checkpointing,
            "device_memory": self.device_memory,
            "tower_weight_bytes": self.network.tower_weight_bytes,
            "buffer_bytes": self.network.buffer_bytes,
            "micro_batch": asdict(self.micro_batch),
            "loss_e": None if self.loss_e is None else asdict(self.loss_e),
            "loss_d": None if self.loss_d is None else asdict(self.loss_d),
            "norm_bytes": self.norm_bytes,
            "stages": [asdict(stage) for stage in self.stages],
            "needs": asdict(self.needs),
            "frames": frames,
        }


def plan_job(
    config: PretrainConfig, num_nodes: int, gpus_per_node: int, device_memory: int, hours: float | None
) -> JobPlan:
    """Measure the network on a frame, and work out the rest.

    Args:
        gpus_per_node: 0 for one worker per node on the CPU.
        device_memory: bytes of a GPU.
        hours: in which train.num_steps are to be done; None is PointContrast's pace.

    Raises:
        ConfigError: the batch cannot be spread over the ranks, the dataset is smaller than a batch, ranks do not divide
            into the groups of the norms, or the model cannot be built.
    """
    world = spread(config, num_nodes, gpus_per_node)
    hours = usual_hours(config, world.size) if hours is None else hours
    towers = zero_towers_of(config.model.clip)
    settings = build_sample_settings(config, towers)
    frames = look_at_frames(config.data.urls, settings)
    require_batch(config, frames)
    checkpointing = config.model.unet.activation_checkpointing
    task = frozen_part(config, towers)
    network, other = (
        measure_network(with_checkpointing(config, on), towers, task, settings, frames.largest)
        for on in (checkpointing, not checkpointing)
    )
    return assemble(config, world, device_memory, hours, frames, network, other, towers.embed_dim)


def require_batch(config: JobConfig, frames: FrameFigures) -> None:
    """Raise ConfigError where the dataset is smaller than a batch."""
    if frames.num_samples is not None:
        try:
            steps_per_epoch(frames.num_samples, config.train.global_batch_size)
        except ValueError as error:
            raise ConfigError(str(error)) from error


def spread(config: JobConfig, num_nodes: int, gpus_per_node: int) -> World:
    """The ranks and their share of a batch.

    Raises:
        ConfigError: fewer frames than ranks, or ranks that do not divide into the groups of the norms.
    """
    world_size = num_nodes * max(1, gpus_per_node)
    for problem in problems_of_world(config, world_size):
        raise ConfigError(str(problem))
    train = config.train
    micro_batch = train.global_batch_size // train.grad_accum_steps
    return World(num_nodes, max(1, gpus_per_node), gpus_per_node == 0, -(-micro_batch // world_size))


def usual_hours(config: JobConfig, world_size: int) -> float:
    """How long the steps take at PointContrast's pace, if every rank is as fast as a GPU of its day."""
    return config.train.num_steps * config.train.global_batch_size * GPU_SECONDS_PER_FRAME / world_size / 3600


def with_checkpointing(config: AnyConfig, on: bool) -> AnyConfig:
    """The configuration as one process measures it: norms over this rank, checkpointing switched."""
    unet = config.model.unet.model_copy(update={"activation_checkpointing": on})
    norm = "batch" if config.model.norm == "sync_batch" else config.model.norm
    model = config.model.model_copy(update={"unet": unet, "norm": norm, "norm_group_size": None})
    return config.model_copy(update={"model": model})


def assemble(
    config: JobConfig,
    world: World,
    device_memory: int,
    hours: float,
    frames: FrameFigures,
    network: NetworkFigures,
    other: NetworkFigures,
    clip_dim: int,
) -> JobPlan:
    """The plan from what was measured.

    Args:
        network, other: measured with activation checkpointing as configured, and switched.
        clip_dim: d, the width in which L_e compares.
    """
    train, sync = config.train, config.model.norm == "sync_batch"
    loss_e = loss_d = None
    if isinstance(config, PretrainConfig):
        ends_e, ends_d = (ends.times(world.frames_per_rank) for ends in drawn_ends(config.loss, frames.largest))
        loss_e = pair_gather(*ends_e, clip_dim, world.size, trained_pixels=False)
        loss_d = pair_gather(*ends_d, config.model.embed_dim_d, world.size, trained_pixels=True)
    gathers = [loss for loss in (loss_e, loss_d) if loss is not None]
    held_bytes = sum(loss.held_bytes for loss in gathers)
    checkpointing = config.model.unet.activation_checkpointing
    group_size = (config.model.norm_group_size or world.size) if sync else 1
    norms = train.grad_accum_steps * norm_bytes(network.norm_channels, group_size, recomputed=checkpointing)
    pair_bytes = train.grad_accum_steps * sum(loss.sent_bytes for loss in gathers)
    cluster = Cluster(world.size, BUCKET_SIZE, STAGE_3_WHOLE_BELOW, train.grad_accum_steps)
    limit = None if world.cpu else device_memory

    stages = []
    for stage in STAGES:
        state = state_bytes(network.groups, stage, cluster, foreach=not world.cpu)
        sent = traffic(network.groups, stage, cluster)
        memory, memory_other = (
            rank_memory(measured, state, world.frames_per_rank, held_bytes, limit) for measured in (network, other)
        )
        stages.append(
            StagePlan(
                stage=stage,
                state=state,
                memory=memory,
                memory_other=memory_other,
                traffic=sent,
                sent_bytes=sent.total + pair_bytes + norms,
                checkpoint_bytes=checkpoint_bytes(network.groups, network.buffer_bytes, stage, cluster),
            )
        )
    return JobPlan(
        config=config,
        world=world,
        device_memory=device_memory,
        frames=frames,
        network=network,
        micro_batch=network.of_frames(world.frames_per_rank),
        loss_e=loss_e,
        loss_d=loss_d,
        norm_bytes=norms,
        stages=tuple(stages),
        needs=needs_of(config, frames, stages[train.zero_stage].sent_bytes, hours),
    )


def rank_memory(
    network: NetworkFigures, state: StateBytes, num_frames: int, gathered: int, limit: int | None
) -> RankMemory:
    """The highest that one rank gets.

    Args:
        num_frames: frames of a micro-batch.
        gathered: bytes of both losses' gathered embeddings.
        limit: bytes of the device; None on the CPU.
    """
    micro_batch = network.of_frames(num_frames)
    held = (
        state.parameters
        + state.optimizer
        + network.buffer_bytes
        + network.tower_weight_bytes
        + micro_batch.batch
        + micro_batch.kept
    )
    standing = state.standing_gradients
    arriving = max(0, min(micro_batch.gradients, state.gradients) - standing)
    turns: Mapping[str, int] = {
        "tower": standing + micro_batch.tower,
        "forward": standing + state.forward + micro_batch.forward,
        "losses": standing + state.forward + micro_batch.loss + gathered,
        "backward": standing + state.backward + micro_batch.backward + arriving,
        "end of backward": state.gradients + state.backward,
        "step": state.gradients + state.step,
    }
    peak = held + max(turns.values())
    if limit is None:
        return RankMemory(peak, 0, None)
    reserve = RUNTIME_BYTES + int(ALLOCATOR_SHARE * peak)
    return RankMemory(peak, reserve, peak + reserve <= limit)


def needs_of(config: JobConfig, frames: FrameFigures, sent_bytes: int, hours: float) -> Needs:
    """Rates for num_steps in so many hours.

    Args:
        sent_bytes: by one rank in one step.
    """
    steps_per_second = config.train.num_steps / (hours * 3600)
    frames_per_second = steps_per_second * config.train.global_batch_size
    return Needs(
        hours=hours,
        steps_per_second=steps_per_second,
        frames_per_second=frames_per_second,
        stored_bytes_per_second=frames_per_second * frames.stored_bytes,
        loader_processes=frames_per_second * frames.load_seconds,
        sent_bytes_per_second=steps_per_second * sent_bytes,
    )
