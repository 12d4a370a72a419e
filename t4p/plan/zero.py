"""What DeepSpeed's ZeRO holds, sends and writes at each stage, as our engine sets it up. Plain arithmetic.

All of it is fp32, in bf16 runs too: torch_autocast keeps parameters and reduces gradients in fp32. The formulas are
those of the ZeRO paper (Rajbhandari et al. 2020) with what DeepSpeed 0.19.8 adds: a master copy of the parameters at
stages 1 to 3 even though they are fp32 already, a bucket, and all-reduces where the paper has reduce-scatters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ZeroStage = Literal[0, 1, 2, 3]
STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)
FP32_BYTES = 4


@dataclass(frozen=True)
class Cluster:
    """The ranks of a job and how its engine cuts what they share.

    Attributes:
        world_size: ranks.
        bucket_numel: gradients that travel together at stages 1 to 3.
        whole_below: at stage 3, parameters smaller than this stay whole on every rank.
        grad_accum_steps: micro-batches of a step.
    """

    world_size: int
    bucket_numel: int
    whole_below: int
    grad_accum_steps: int = 1


@dataclass(frozen=True)
class StateBytes:
    """Bytes of one rank.

    Attributes:
        parameters: held all the time.
        optimizer: held from the first step on: AdamW's two moments and, at stages 1 to 3, a master copy.
        gradients: held while backward ends and the step begins.
        standing_gradients: the part of them that is held during the forward pass as well.
        forward: on top of these until the first gradient arrives: at stage 3 the bucket and the whole parameters.
        backward: on top of these from then on: the bucket, and at stage 3 the whole parameters.
        step: on top of parameters, optimizer and gradients while the optimizer runs.
    """

    parameters: int
    optimizer: int
    gradients: int
    standing_gradients: int
    forward: int
    backward: int
    step: int


@dataclass(frozen=True)
class Traffic:
    """Bytes of gradients and parameters that one rank sends in one step, by collective; it receives as many.

    Ring algorithms: of T bytes a rank sends T (W - 1) / W in an all-gather or a reduce-scatter, twice that in an
    all-reduce.
    """

    all_reduce: int
    reduce_scatter: int
    all_gather: int

    @property
    def total(self) -> int:
        return self.all_reduce + self.reduce_scatter + self.all_gather


def partition_numel(numels: Sequence[int], stage: ZeroStage, cluster: Cluster) -> int:
    """Numbers of which one rank keeps the optimizer's state.

    Stages 1 and 2 cut the flat parameters into equal parts (padded to a multiple of 2 W), stage 3 each parameter.

    Args:
        numels: sizes of the parameters of one group.
    """
    world_size = cluster.world_size
    if stage == 0:
        return sum(numels)
    if stage < 3:
        return 2 * -(-sum(numels) // (2 * world_size))
    return sum(-(-numel // world_size) for numel in numels)


def state_bytes(groups: Sequence[Sequence[int]], stage: ZeroStage, cluster: Cluster, *, foreach: bool) -> StateBytes:
    """What one rank holds of parameters, gradients and optimizer.

    Args:
        groups: numels of the parameters, by group of the optimizer.
        foreach: the optimizer steps all parameters at once, as torch does on a GPU, not one after the other.
    """
    whole = FP32_BYTES * sum(map(sum, groups))
    part = FP32_BYTES * sum(partition_numel(group, stage, cluster) for group in groups)
    bucket = FP32_BYTES * cluster.bucket_numel
    accumulates = cluster.grad_accum_steps > 1
    if stage == 0:
        largest = FP32_BYTES * max(map(max, groups))
        return StateBytes(
            parameters=whole,
            optimizer=2 * whole,
            gradients=whole,
            standing_gradients=whole if accumulates else 0,
            forward=0,
            backward=0,
            step=whole if foreach else 3 * largest,
        )
    # The owned gradients are copied into one flat tensor; the update is computed beside it.
    largest = FP32_BYTES * max(partition_numel(group, stage, cluster) for group in groups)
    step = part + (part if foreach else 2 * largest)
    if stage < 3:
        padded = FP32_BYTES * sum(cluster.world_size * partition_numel(group, stage, cluster) for group in groups)
        # Stage 1 keeps whole gradients between micro-batches, and reduces them as they come in the last one.
        standing = 0 if not accumulates else whole if stage == 1 else part
        return StateBytes(
            parameters=padded,
            optimizer=3 * part,
            gradients=max(part, standing),
            standing_gradients=standing,
            forward=bucket if stage == 1 and accumulates else 0,  # stage 1 gives its bucket back after the last one
            backward=bucket,
            step=step,
        )
    small = FP32_BYTES * sum(numel for group in groups for numel in group if numel < cluster.whole_below)
    return StateBytes(
        parameters=part + small,
        optimizer=3 * part,
        gradients=part,
        standing_gradients=part,
        forward=bucket + whole - small,
        backward=bucket + whole - small,
        step=bucket + step,
    )


def traffic(groups: Sequence[Sequence[int]], stage: ZeroStage, cluster: Cluster) -> Traffic:
    """What one rank sends of gradients and parameters in one step."""
    whole = FP32_BYTES * sum(map(sum, groups))
    micro_batches = cluster.grad_accum_steps
    once = whole * (cluster.world_size - 1) // cluster.world_size
    if stage == 0:
        return Traffic(all_reduce=2 * once, reduce_scatter=0, all_gather=0)
    if stage == 1:
        return Traffic(all_reduce=2 * once, reduce_scatter=0, all_gather=once)
    if stage == 2:
        return Traffic(all_reduce=2 * once * micro_batches, reduce_scatter=0, all_gather=once)
    # What is gathered for the forward pass stays for the backward pass: DeepSpeed gives back only what exceeds a
    # billion live parameters, or is not used again within as many.
    return Traffic(all_reduce=0, reduce_scatter=once * micro_batches, all_gather=once * micro_batches)


def checkpoint_bytes(groups: Sequence[Sequence[int]], buffer_bytes: int, stage: ZeroStage, cluster: Cluster) -> int:
    """One checkpoint, the files of all ranks: parameters (stage 3: only as master copy), master copy, moments."""
    whole = FP32_BYTES * sum(map(sum, groups))
    parts = FP32_BYTES * cluster.world_size * sum(partition_numel(group, stage, cluster) for group in groups)
    if stage == 0:
        return 3 * whole + buffer_bytes
    return (whole if stage < 3 else 0) + 3 * parts + buffer_bytes
