"""The `t4p bench` commands: how fast this machine is at what a run does."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from commands.arguments import ConfigArguments, split_arguments

if TYPE_CHECKING:
    from t4p.plan.data_rates import DataRates  # loads torch

app = typer.Typer(help="How fast this machine is at what a run does.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """A group: `t4p bench data` is its first command."""


@app.command("data", epilog="Example: t4p bench data configs/pretrain/own.yaml 'data.shards=[DST]'")
def data_command(
    arguments: ConfigArguments,
    samples: Annotated[int, typer.Option(min=1, help="To time at each stage.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Samples a second of a pre-training's data, by stage, what they wait for, and what to change."""
    from t4p.config.files import load_for_command
    from t4p.config.tasks import PretrainConfig
    from t4p.tasks.beforehand import look_beforehand

    config = load_for_command("pretrain", *split_arguments(arguments))
    assert isinstance(config, PretrainConfig)
    look_beforehand(config)
    from commands.plan import make_console
    from t4p.plan.data_rates import measure_rates

    rates = measure_rates(config, samples)
    if as_json:
        found = {**asdict(rates), "allowed": rates.allowed, "starves": rates.starves, "change": advice(rates)}
        typer.echo(json.dumps(found))
        return
    console = make_console()
    console.print(_stage_table(rates))
    console.print(verdict(rates), highlight=False)
    console.print(advice(rates), style="bold", highlight=False)


def _stage_table(rates: DataRates) -> Table:
    stages = rates.stages
    table = Table(box=box.SIMPLE_HEAD, title="one sample in one loader process", title_justify="left")
    for column in ("stage", "CPU ms", "samples per core-second"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    rows = (
        (f"read and check {stages.stored_bytes / 1000:.0f} kB", stages.read),
        ("decode colour and depth", stages.decode),
        ("points, voxels and pairs", stages.points),
        ("all", stages.cpu),
    )
    for name, seconds in rows:
        table.add_row(name, f"{1000 * seconds:.2f}", f"{1 / max(seconds, 1e-9):,.0f}")
    return table


def verdict(rates: DataRates) -> str:
    """What was measured, in words."""
    loaders = f"{rates.num_workers} loader process(es)" if rates.num_workers else "The training process itself"
    said = (
        f"{loaders} on {rates.num_cores} core(s): {rates.samples_per_second:,.1f} samples a second, where the "
        f"processors allow {rates.allowed:,.1f}; the first batch after {rates.first_batch:.1f} s.\n"
        f"One sample alone is there after {1000 * rates.stages.read_wall:.0f} ms; object storage is read ahead."
    )
    if rates.stages.busy > 1.5:
        said += (
            f"\nThe processors are busy: a process waits {rates.stages.busy - 1:.1f} times as long as it works; "
            "measure again on a quiet machine."
        )
    if rates.wanted is not None:
        short = rates.wanted > rates.samples_per_second
        said += f"\nThe run in run.dir trains {rates.wanted:,.1f} samples a second while it does not wait: " + (
            "more than come, so it waits for data." if short else "fewer than come, so data is not what it waits for."
        )
    return said


def advice(rates: DataRates) -> str:
    """The next move."""
    if rates.starves == "storage":
        return (
            "Samples wait for storage: look at the network and the disk of data.cache_dir; a larger data.cache_bytes "
            "keeps what comes again."
        )
    if rates.num_workers < rates.num_cores:
        return f"Loaders are what is short: data.num_workers={rates.num_cores} uses all cores."
    if rates.starves == "decode":
        return "Decoding is the largest part: pack with --depth-codec zstd, which is decoded five times as fast."
    return (
        f"Points are the largest part: data.pixel_stride={2 * rates.pixel_stride} makes a quarter of them; a GPU makes "
        "them itself."
    )
