"""The `t4p` command. Knows all packages, and imports them inside its commands so that `--help` stays quick."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from commands import checkpoint as checkpoint_cli
from commands import config as config_cli
from commands import launch as launch_cli
from commands import shards as shards_cli
from commands.arguments import ConfigArguments, load_worker_config, split_arguments
from commands.bars import progress_bar
from shards.errors import UserError
from t4p.errors import ConfigError

if TYPE_CHECKING:
    from t4p.config.run import ClusterConfig

app = typer.Typer(
    help="Pre-train 3D networks against CLIP from RGB-D data.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(shards_cli.app, name="shards")
app.add_typer(checkpoint_cli.app, name="checkpoint")
app.add_typer(launch_cli.app, name="launch")
app.add_typer(config_cli.app, name="config")


@app.command()
def quickstart(
    data: Annotated[
        str | None,
        typer.Option(
            help="A packed dataset (a folder or an s3:// prefix), or a folder of raw frames in a layout that "
            "`t4p shards formats` lists. Default: procedural rooms, made on the spot."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write.")] = Path("runs/quickstart"),
) -> None:
    """The whole road, small: pack rooms, pre-train through Ray, ask in words, fine-tune, report."""
    from commands.quickstart.quickstart import quickstart as run_quickstart

    raise typer.Exit(run_quickstart(data, out))


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Option(
            help="Storage to try, s3://BUCKET/PREFIX or a folder: a few MiB are written there, read and removed."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What is installed and works, and for each gap the command that closes it."""
    from commands.doctor.report import diagnose_aloud, print_diagnosis

    diagnosis = diagnose_aloud(url)
    if as_json:
        typer.echo(json.dumps(diagnosis.to_json()))
    else:
        print_diagnosis(diagnosis)
    raise typer.Exit(diagnosis.exit_status)


@app.command()
def pretrain(arguments: ConfigArguments) -> None:
    """Pre-train as one worker: rank and world size come from the environment (alone: 0 of 1)."""
    _train("pretrain", arguments)


@app.command()
def finetune(arguments: ConfigArguments) -> None:
    """Fine-tune for semantic segmentation as one worker, from a pre-training or from scratch. No images."""
    _train("finetune", arguments)


@app.command()
def evaluate(
    arguments: ConfigArguments,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score an exported network on labelled points: zero-shot after pre-training, its head's after fine-tuning."""
    from t4p.config.files import load_for_command
    from t4p.config.tasks import EvaluateConfig
    from t4p.tasks.beforehand import look_before_evaluation

    config = load_for_command("evaluate", *split_arguments(arguments))
    assert isinstance(config, EvaluateConfig)
    look_before_evaluation(config)
    from commands.evaluate import print_scores, scores_as_dict
    from t4p.tasks.evaluate import evaluate as run_evaluation

    with progress_bar("evaluating") as on_progress:
        exported, scores = run_evaluation(config, on_progress)
    if as_json:
        typer.echo(json.dumps(scores_as_dict(exported, scores)))
    else:
        print_scores(exported, scores)


@app.command()
def plan(
    arguments: ConfigArguments,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines. Default: cluster.num_nodes.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="0: one worker on the CPU. Default: cluster.gpus_per_node.")
    ] = None,
    gpu_memory: Annotated[float, typer.Option(min=0, help="GiB of one GPU.")] = 80.0,
    hours: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="In which train.num_steps are to be done. Default: 0.6 GPU seconds per frame, PointContrast's.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Will it fit? Memory, network, storage and checkpoints of a run at each ZeRO stage, before a node is paid for."""
    from t4p.config.files import load_for_command
    from t4p.config.tasks import PretrainConfig

    def nodes_of(cluster: ClusterConfig) -> tuple[int, int]:
        """Nodes, and GPUs of each."""
        return (
            cluster.num_nodes if nodes is None else nodes,
            cluster.gpus_per_node if gpus_per_node is None else gpus_per_node,
        )

    def world(cluster: ClusterConfig) -> int:
        num_nodes, num_gpus = nodes_of(cluster)
        return num_nodes * max(1, num_gpus)

    config = load_for_command("pretrain", *split_arguments(arguments), world)
    assert isinstance(config, PretrainConfig)
    from t4p.plan.job import plan_job

    num_nodes, num_gpus = nodes_of(config.cluster)
    job = plan_job(config, num_nodes, num_gpus, int(gpu_memory * 2**30), hours)
    if as_json:
        typer.echo(json.dumps(job.to_json()))
        return
    from commands.plan import make_console, print_plan

    print_plan(job, make_console())


@shards_cli.app.command("order")
def shards_order(
    url: Annotated[str, typer.Argument(metavar="DST", help="A packed dataset.")],
    global_batch_size: Annotated[int, typer.Option(min=1)],
    world_size: Annotated[int, typer.Option(min=1)] = 1,
    rank: Annotated[int, typer.Option(min=0)] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    epoch: Annotated[int, typer.Option(min=0)] = 0,
    from_step: Annotated[int, typer.Option(min=0, help="First step of the epoch to show.")] = 0,
    steps: Annotated[int | None, typer.Option(min=0, help="How many; default: to the end of the epoch.")] = None,
    streams: Annotated[int, typer.Option(min=1)] = 64,
    shuffle_block: Annotated[int, typer.Option(min=1)] = 2048,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Which samples a rank reads at which step, without reading any."""
    from t4p.data.fetch import Catalogue
    from t4p.data.order import EpochOrder, rank_positions, steps_per_epoch

    catalogue = Catalogue([url])
    try:
        last = steps_per_epoch(catalogue.num_samples, global_batch_size)
        last = last if steps is None else min(last, from_step + steps)
        order = EpochOrder(catalogue.samples_per_shard, seed, epoch, streams, shuffle_block)
        listed: list[tuple[int, list[str]]] = []
        for step in range(from_step, last):
            positions = rank_positions(step, global_batch_size, 1, 0, rank, world_size)
            keys = [catalogue.key(shard, sample) for shard, sample in order.samples_at(positions).tolist()]
            listed.append((step, keys))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if as_json:
        typer.echo(json.dumps({"steps": [{"step": step, "keys": keys} for step, keys in listed]}))
    else:
        for step, keys in listed:
            typer.echo(f"{step:>8}  {' '.join(keys)}")


def _train(command: str, arguments: list[str]) -> None:
    """Be one worker of a training, to its end or to Ctrl-C."""
    config = load_worker_config(command, arguments)
    from t4p.config.kinds import task_named
    from t4p.train.engine import stop_process_group

    try:
        task_named(config.task).load().run(config)
        stop_process_group()
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command resumes from the last checkpoint", err=True)
        raise typer.Exit(130) from None


def main() -> NoReturn:
    """Run the command line; a user's mistake ends with one message and no traceback."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_status)
    sys.exit(0)


if __name__ == "__main__":
    main()
