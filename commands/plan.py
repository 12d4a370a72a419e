"""A plan as tables of at most 100 columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from t4p.config.tasks import FinetuneConfig

if TYPE_CHECKING:
    from t4p.plan.job import JobPlan, StagePlan  # loads torch

_WIDTH = 100
_BARELY = 0.05  # busy loader processes, 0.0 in the table: the training process itself may load


def print_plan(plan: JobPlan, console: Console) -> None:
    """Print what a user asks: does it fit, at which stage, how many frames per rank, what network and storage."""
    console.print(_heading(plan), highlight=False, soft_wrap=False)
    console.print(_memory_table(plan))
    console.print(_traffic_table(plan))
    console.print(_needs_table(plan))
    console.print(_notes(plan), highlight=False)
    console.print(verdict(plan), style="bold", highlight=False)


def make_console() -> Console:
    """100 columns, also where the output is no terminal."""
    console = Console()
    console.width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    return console


def verdict(plan: JobPlan) -> str:
    """One sentence: does the configured stage fit, and if not, what would."""
    stage = plan.configured
    name = f"ZeRO-{stage.stage}"
    peak = _gib(stage.memory.peak + stage.memory.reserve)
    if stage.memory.fits is None:
        return f"{name}: a worker holds {peak} GiB at its highest, beside the interpreter and its loader processes."
    limit = _gib(plan.device_memory)
    if stage.memory.fits:
        return f"{name} fits: {peak} of {limit} GiB."
    checkpointing = plan.config.model.unet.activation_checkpointing
    ways = [f"train.zero_stage={other.stage}" for other in plan.stages if other.memory.fits]
    if not checkpointing:
        ways += [
            f"model.unet.activation_checkpointing=true with train.zero_stage={other.stage}"
            for other in plan.stages
            if other.memory_other.fits and not other.memory.fits
        ]
    if not ways:
        ways = [f"more ranks or a larger train.grad_accum_steps, for fewer {_sample(plan)}s at a time on a rank"]
        if plan.world.frames_per_rank == 1:
            ways = [
                f"larger voxels, a smaller model.unet.plan, or a GPU with more memory: one {_sample(plan)} is the least"
            ]
    return f"{name} does not fit: {peak} of {limit} GiB. What would: {'; or '.join(ways[:2])}."


def _heading(plan: JobPlan) -> str:
    world, train = plan.world, plan.config.train
    kind = "worker" if world.cpu else "GPU"
    where = " on the CPU" if world.cpu else ""
    sample = _sample(plan)
    frames = plan.frames
    voxels = frames.largest_voxels
    average = f" in the largest, {frames.mean_voxels:,.0f} on average" if frames.num_samples else ""
    ranks = (
        f"{_count(world.size, kind)}{where} ({_count(world.num_nodes, 'node')} x {world.ranks_per_node}), "
        f"{_count(train.global_batch_size, sample)} in {_count(train.grad_accum_steps, 'micro-batch', 'es')}: "
        f"{_count(world.frames_per_rank, sample)} per rank at a time"
    )
    network = (
        f"{plan.config.model.unet.plan}, {plan.num_parameters / 1e6:.1f} M trained parameters, {train.precision}, "
        f"CLIP {plan.config.model.clip.name} with {_gib(plan.network.tower_weight_bytes)} GiB of frozen weights"
    )
    seen = f"planned with {frames.source}: {voxels:,} voxels of {plan.config.model.voxel_size * 100:g} cm{average}"
    return "\n".join((ranks, network, seen))


def _memory_table(plan: JobPlan) -> Table:
    table = _stage_table(plan, "Memory of one rank, MiB")
    micro_batch = plan.micro_batch
    on = plan.config.model.unet.activation_checkpointing
    stages = plan.stages

    def row(name: str, value: Callable[[StagePlan], int]) -> None:
        table.add_row(name, *(_mib(value(stage)) for stage in stages))

    row("parameters", lambda stage: stage.state.parameters)
    row("optimizer: AdamW, master copy", lambda stage: stage.state.optimizer)
    row("gradients, at most", lambda stage: stage.state.gradients)
    row("bucket and gathered parameters", lambda stage: stage.state.backward)
    row(f"activations{' (recomputed)' if on else ''}", lambda stage: micro_batch.activations + micro_batch.kept)
    if plan.loss_e is not None and plan.loss_d is not None:
        gathered = plan.loss_e.held_bytes + plan.loss_d.held_bytes
        row("gathered pairs of both losses", lambda stage: gathered)
    row("frozen CLIP, batch, statistics", lambda stage: _beside(plan))
    row("highest at one time", lambda stage: stage.memory.peak)
    if not plan.world.cpu:
        row("CUDA, NCCL, allocator (estimate)", lambda stage: stage.memory.reserve)
        table.add_section()
        table.add_row(
            f"[bold]in all, of {_mib(plan.device_memory)}[/bold]",
            *(_marked(stage.memory.peak + stage.memory.reserve, stage.memory.fits) for stage in stages),
        )
    other = "without" if on else "with"
    table.add_row(
        f"{other} activation checkpointing",
        *(_marked(stage.memory_other.peak + stage.memory_other.reserve, stage.memory_other.fits) for stage in stages),
    )
    return table


def _traffic_table(plan: JobPlan) -> Table:
    table = _stage_table(plan, "Sent by one rank in one step, MB")
    micro_batches = plan.config.train.grad_accum_steps
    rows = [
        ("gradients: all-reduce", [stage.traffic.all_reduce for stage in plan.stages]),
        ("gradients: reduce-scatter", [stage.traffic.reduce_scatter for stage in plan.stages]),
        ("parameters: all-gather", [stage.traffic.all_gather for stage in plan.stages]),
        ("synchronised norms", [plan.norm_bytes] * len(plan.stages)),
        ("[bold]in all[/bold]", [stage.sent_bytes for stage in plan.stages]),
    ]
    if plan.loss_e is not None and plan.loss_d is not None:
        pairs = (plan.loss_e.sent_bytes + plan.loss_d.sent_bytes) * micro_batches
        rows.insert(3, ("pairs of both losses", [pairs] * len(plan.stages)))
    for name, values in rows:
        table.add_row(name, *(f"{value / 1e6:,.1f}" for value in values))
    table.add_section()
    table.add_row("checkpoint, all files, MB", *(f"{stage.checkpoint_bytes / 1e6:,.0f}" for stage in plan.stages))
    return table


def _needs_table(plan: JobPlan) -> Table:
    needs, config, world, sample = plan.needs, plan.config, plan.world, _sample(plan)
    table = Table(
        title=f"To take {config.train.num_steps:,} steps in {needs.hours:.3g} hours (--hours)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_header=False,
        width=_WIDTH,
    )
    table.add_column(ratio=1)
    table.add_column(justify="right")
    configured = config.data.num_workers * world.size
    storage, per_node = (needs.stored_bytes_per_second / share / 1e6 for share in (1, world.num_nodes))
    loaders = f"{needs.loader_processes:,.1f} in all, {needs.loader_processes / world.size:,.1f} per rank"
    rows = [
        (
            "steps per second (seconds per step)",
            f"{needs.steps_per_second:.3g} ({1 / needs.steps_per_second:.3g})",
        ),
        (
            f"{sample}s per second, all ranks (each rank)",
            f"{needs.frames_per_second:.3g} ({needs.frames_per_second / world.size:.3g})",
        ),
        (
            f"from object storage, at {plan.frames.stored_bytes / 1e3:,.0f} KB per {sample} (each node)",
            f"{storage:,.1f} MB/s ({per_node:,.1f})",
        ),
        (f"busy loader processes, at {plan.frames.load_seconds * 1e3:.0f} ms per {sample}", loaders),
        ("    data.num_workers gives", f"{configured:,} in all, {config.data.num_workers} per rank"),
        (
            f"network, ZeRO-{config.train.zero_stage}, averaged over the step",
            f"{needs.sent_bytes_per_second * 8 / 1e9:,.2f} Gbit/s per rank",
        ),
    ]
    if plan.loss_e is not None and plan.loss_d is not None:
        rows += [
            (
                "columns of L_e, L_d: pixels of all ranks' pairs, each once",
                f"{plan.loss_e.columns:,}, {plan.loss_d.columns:,}",
            ),
            (
                "their logits, streamed in tiles; as matrices",
                f"{_gib(plan.loss_e.matrix_bytes)}, {_gib(plan.loss_d.matrix_bytes)} GiB per rank",
            ),
        ]
    for row in rows:
        table.add_row(*row)
    return table


def _notes(plan: JobPlan) -> str:
    limits = (
        "Parameters, optimizer, gradients, traffic and checkpoints are counted. Activations were measured on this "
        f"machine's CPU on one {_sample(plan)} and multiplied; what a CUDA kernel uses inside one operation is not in "
        "them. How long a GPU takes for a step is not known here. Loading was timed on one core of this machine."
    )
    notes = [limits]
    if plan.frames.problem is not None:
        notes.append(f"data.shards could not be read, so size and rate of frames are guesses: {plan.frames.problem}")
    elif plan.frames.num_samples:
        epochs = plan.config.train.num_steps * plan.config.train.global_batch_size / plan.frames.num_samples
        notes.append(f"The run sees every {_sample(plan)} {epochs:.1f} times.")
    busy = plan.needs.loader_processes / plan.world.size
    if busy > max(plan.config.data.num_workers, _BARELY):
        notes.append(f"Loading would hold this run up: set data.num_workers to {int(busy) + 1} or more.")
    return "\n".join(notes)


def _sample(plan: JobPlan) -> str:
    """What a sample is called: a frame of a pre-training; a fine-tuning may have scenes."""
    return "sample" if isinstance(plan.config, FinetuneConfig) else "frame"


def _count(number: int, name: str, plural: str = "s") -> str:
    return f"{number:,} {name}{'' if number == 1 else plural}"


def _stage_table(plan: JobPlan, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, width=_WIDTH)
    table.add_column("", ratio=1)
    for stage in plan.stages:
        mark = " *" if stage is plan.configured else ""
        table.add_column(f"ZeRO-{stage.stage}{mark}", justify="right", min_width=10)
    return table


def _beside(plan: JobPlan) -> int:
    return plan.network.tower_weight_bytes + plan.network.buffer_bytes + plan.micro_batch.batch


def _marked(value: int, fits: bool | None) -> str:
    return f"[red]{_mib(value)} no[/red]" if fits is False else _mib(value)


def _mib(value: float) -> str:
    return f"{value / 2**20:,.0f}"


def _gib(value: float) -> str:
    return f"{value / 2**30:,.2f}"
