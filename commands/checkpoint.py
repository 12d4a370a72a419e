"""The `t4p checkpoint` commands: what a run has saved, whether it is whole, and other forms of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from commands.arguments import Force
from commands.card import CARD_SUFFIX, model_card
from shards.results import check_result, write_result
from t4p.config.kinds import config_of_task
from t4p.errors import CheckpointError, ConfigError
from t4p.runs.checkpoint import as_checkpoint, check_sizes, checkpoints_in, read_state, verify_marker
from t4p.runs.retention import DELETED
from t4p.runs.universal import SUFFIX, is_universal, made_from, make_universal, universal_of
from t4p.tasks.afterwards import evaluation_of

app = typer.Typer(
    help="What a run has saved: list, verify, convert for another number of ranks, export.", no_args_is_help=True
)

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT", help="RUN_DIR/checkpoints/step_00000120, or RUN_DIR for its newest whole one."
    ),
]


@dataclass(frozen=True)
class Listed:
    """One directory of a run's checkpoints.

    Attributes:
        step, world_size, zero_stage: None where the directory does not say.
        problem: why it does not count; None if it is whole, by its marker and the sizes of its files.
        universal: a universal checkpoint stands beside it.
    """

    name: str
    step: int | None
    world_size: int | None
    zero_stage: int | None
    size_bytes: int
    problem: str | None
    universal: bool


@app.command("list")
def list_command(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="run.dir of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """The checkpoints of a run, and why one does not count. Sizes are checked; `verify` reads every byte."""
    listed = list_checkpoints(run_dir)
    if as_json:
        typer.echo(json.dumps({"run_dir": str(run_dir), "checkpoints": [asdict(entry) for entry in listed]}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("checkpoint", "step", "ranks", "ZeRO", "MB", "state", box=None, pad_edge=False)
    for entry in listed:
        state = entry.problem or ("whole, and universal" if entry.universal else "whole")
        numbers = (entry.step, entry.world_size, entry.zero_stage)
        cells = ["" if number is None else str(number) for number in numbers]
        table.add_row(entry.name, *cells, f"{entry.size_bytes / 1e6:,.1f}", state)
    Console().print(table if listed else f"{run_dir}: no checkpoint yet", soft_wrap=True)


@app.command("verify")
def verify_command(checkpoint: Checkpoint) -> None:
    """Read every byte of a checkpoint and compare it with the marker; exit status 1 if it is not whole."""
    checkpoint = as_checkpoint(checkpoint, typer.echo)
    verify_marker(checkpoint)
    state = read_state(checkpoint)
    kind = "universal checkpoint" if is_universal(checkpoint) else f"checkpoint of {state.world_size} rank(s)"
    size = _size_of(checkpoint)
    typer.echo(f"{checkpoint}: whole; {kind}, step {state.step}, {size / 1e6:,.1f} MB")


@app.command("convert")
def convert_command(
    checkpoint: Checkpoint,
    out: Annotated[
        Path | None, typer.Option(help="Where to write. Default: beside the checkpoint, where a run looks for it.")
    ] = None,
) -> None:
    """Make the universal checkpoint that any number of ranks can load. A run makes it by itself when it needs one."""
    checkpoint = as_checkpoint(checkpoint, typer.echo)
    verify_marker(checkpoint)
    if is_universal(checkpoint):
        raise ConfigError(f"{checkpoint}: it is a universal checkpoint already")
    stage = read_state(checkpoint).config["train"]["zero_stage"]
    if stage == 0:
        raise ConfigError(f"{checkpoint}: written with train.zero_stage=0, which any number of ranks loads as it is")
    destination = out if out is not None else universal_of(checkpoint)
    if destination.exists() and not is_universal(destination):
        raise ConfigError(f"{destination}: exists, and is no universal checkpoint; choose another --out")
    if out is not None and destination.exists() and not made_from(destination, checkpoint):
        raise CheckpointError(
            f"{destination}: holds a universal checkpoint that was not made from {checkpoint} as it is now; "
            "choose another --out, or delete that one"
        )
    from t4p.train.engine import convert_to_universal

    make_universal(checkpoint, destination, convert_to_universal, typer.echo)
    typer.echo(f"{destination}: {_size_of(destination) / 1e6:,.1f} MB; any number of ranks can resume from it")


@app.command("export")
def export_command(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
    pretrained: Annotated[
        str | None, typer.Option(help="The towers' weights, where they are not where model.clip.pretrained says.")
    ] = None,
    finetuned_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of the fine-tuned weights; the rest are those that a fine-tuning with model.head=words began "
            "with. With few labels less than 1 is better: try 0.3 to 0.6 on validation data.",
        ),
    ] = 1.0,
    card: Annotated[
        bool,
        typer.Option(
            "--card", help="Write a model card beside it (OUT.md): what it is, how it was trained, data and licences."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Write the trained weights, the configuration and the label embeddings into one file; no DeepSpeed to read it."""
    check_result(out, force)
    card_path = out.with_suffix(CARD_SUFFIX)
    if card:
        if card_path == out:
            raise ConfigError(f"{out}: its card would have the same name; name the export {out.stem}.safetensors")
        check_result(card_path, force)
    checkpoint = as_checkpoint(checkpoint, typer.echo)
    check_sizes(checkpoint)  # quick, before torch is loaded; the export itself reads every byte
    from t4p.tasks.export import export_checkpoint

    export_checkpoint(checkpoint, out, pretrained, finetuned_share, force)
    typer.echo(
        f"{out}: {out.stat().st_size / 1e6:,.1f} MB; read it in Python with t4p.load({str(out)!r}), score it on "
        f"a dataset with labels with `{evaluation_of(config_of_task(read_state(checkpoint).config), out)}`"
    )
    if card:
        from t4p.models.exported import load_exported_network

        with write_result(card_path, force) as partial:
            partial.write_text(model_card(load_exported_network(out), out.stem), encoding="utf-8")
        typer.echo(
            f"{card_path}: the model card; README.md of a repository of the Hugging Face hub, {out.name} beside it"
        )


def list_checkpoints(run_dir: Path) -> list[Listed]:
    """Everything under a run's `checkpoints/` that is or was meant to be a checkpoint, by name.

    Raises:
        ConfigError: the folder is no run folder.
    """
    checkpoints = run_dir / "checkpoints"
    if not checkpoints.is_dir():
        if (run_dir / "config.yaml").is_file():
            return []
        raise ConfigError(f"{run_dir}: no run folder; wanted one that holds checkpoints/ (run.dir of a run)")
    found = sorted(path for path in checkpoints.glob("step_*") if path.is_dir())
    named = set(checkpoints_in(checkpoints))
    # A universal checkpoint is listed with the one it was made from.
    return [_look_at(path, path in named) for path in found if SUFFIX not in path.name]


def _look_at(directory: Path, named_as_checkpoint: bool) -> Listed:
    problem = None
    if not named_as_checkpoint:
        cut_short = directory.name.endswith(DELETED)
        problem = "being deleted; the next deletion finishes it" if cut_short else "moved aside, never used"
    else:
        try:
            check_sizes(directory)
        except CheckpointError as error:
            problem = str(error).removeprefix(f"{directory}: ").partition(";")[0]
    step = world_size = stage = None
    try:
        state = read_state(directory)
        step, world_size, stage = state.step, state.world_size, state.config["train"]["zero_stage"]
    except (CheckpointError, KeyError, TypeError) as error:  # the last two: a configuration without a ZeRO stage
        problem = problem or f"state.json: not the state of a run ({error})"
    universal = False
    if (beside := universal_of(directory)).is_dir():
        try:
            check_sizes(beside)
            universal = True
        except CheckpointError:
            pass
    return Listed(directory.name, step, world_size, stage, _size_of(directory), problem, universal)


def _size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
