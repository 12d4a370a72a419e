"""The `t4p` command. Knows all packages, and imports them inside its commands so that `--help` stays quick."""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from commands.arguments import ConfigArguments, Force, load_worker_config, split_arguments
from commands.bars import progress_bar
from shards.errors import UserError

if TYPE_CHECKING:
    from t4p.config.run import ClusterConfig

app = typer.Typer(
    help="Pre-train 3D networks against CLIP from RGB-D data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"t4p {_version()}")
        raise typer.Exit


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("text4point")
    except PackageNotFoundError:  # a job's source travels without being installed
        return "(not installed)"


@app.callback()
def t4p(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Pre-train 3D networks against CLIP from RGB-D data."""


def _group_of(module: str) -> type[TyperGroup]:
    """A group whose commands are those of the module's `app`, which is imported when one of them is asked for."""

    class GroupOnUse(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return self._commands().list_commands(ctx)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            return self._commands().get_command(ctx, cmd_name)

        def _commands(self) -> TyperGroup:
            return typer.main.get_group(importlib.import_module(module).app)

    return GroupOnUse


for name, help_text in {
    "shards": "Raw RGB-D to tar shards to a verified dataset.",
    "checkpoint": "What a run has saved: list, verify, convert for another number of ranks, export.",
    "launch": "Start jobs on Ray, here or on a cluster, and look after them.",
    "bench": "How fast this machine is at what a run does.",
    "config": "What can be set in a configuration, and what a run would use.",
}.items():
    app.add_typer(typer.Typer(cls=_group_of(f"commands.{name}"), help=help_text, no_args_is_help=True), name=name)


@app.command(epilog="Example: t4p quickstart --data RAW")
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


@app.command(epilog="Example: t4p doctor --url s3://bucket/prefix")
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


@app.command(epilog="Example: t4p pretrain configs/pretrain/own.yaml 'data.shards=[DST]' run.dir=runs/mine")
def pretrain(arguments: ConfigArguments) -> None:
    """Pre-train as one worker: rank and world size come from the environment (alone: 0 of 1)."""
    _train("pretrain", arguments)


@app.command(epilog="Example: t4p finetune configs/finetune/rooms.yaml model.pretrained=runs/rooms")
def finetune(arguments: ConfigArguments) -> None:
    """Fine-tune for labels, masks or boxes as one worker, from a pre-training or from scratch. No images."""
    _train("finetune", arguments)


@app.command(epilog="Example: t4p evaluate model.exported=model.safetensors 'data.shards=[DST]'")
def evaluate(
    arguments: ConfigArguments,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write the scores, and the best and the worst sample, as a page, too."),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write what was said of every point of whole scenes, as ScanNet's benchmark takes it; the scenes need "
            "no labels then. A folder that is not there yet.",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Score an exported network on labelled points: zero-shot after pre-training, its head's after fine-tuning."""
    from shards.results import check_result, write_result
    from t4p.config.files import load_for_command
    from t4p.config.tasks import EvaluateConfig
    from t4p.tasks.beforehand import look_before_evaluation

    config = load_for_command("evaluate", *split_arguments(arguments))
    assert isinstance(config, EvaluateConfig)
    look_before_evaluation(config, submission)
    if page is not None:
        check_result(page, force)
    from commands.evaluate import BestAndWorst, page_of, print_scores, scores_as_dict
    from commands.pages.page import render_page
    from t4p.tasks.evaluate import evaluate as run_evaluation

    looked = BestAndWorst()
    with progress_bar("evaluating") as on_progress:
        exported, scores = run_evaluation(config, on_progress, None if page is None else looked.take, submission)
    if submission is not None:
        typer.echo(f"wrote {submission}: zip what is in it, and hand that in", err=True)
    if page is not None:
        network, urls, scenes = config.model.exported, config.data.shards, looked.scenes(exported)
        report = page_of(network, urls, exported, scores, looked.counts, scenes)
        with write_result(page, force) as partial:
            partial.write_text(render_page(report), encoding="utf-8")
        typer.echo(f"wrote {page}", err=True)
    if as_json:
        typer.echo(json.dumps(scores_as_dict(exported, scores)))
    else:
        print_scores(exported, scores)


MODEL = typer.Argument(
    metavar="MODEL",
    help="What `t4p checkpoint export` wrote, of any task; a run folder; or hf://OWNER/NAME of the Hugging Face hub.",
)
SCAN = typer.Argument(
    metavar="SCAN",
    help="A .ply or .npz, a packed dataset (DST, DST#SCENE or DST#SCENE/FRAME), or a folder of raw frames; frames are "
    "fused.",
)
OUT = typer.Option(metavar="FOLDER", help="Where to write. Default: predictions/NAME.")
UNIT = typer.Option(help="Of the coordinates of a file: m, cm or mm. Default: guessed, and told.")
UP = typer.Option(help="Axis that points up: z, y, -y, ... Default: guessed, and told.")


@app.command(epilog="Example: t4p predict model.safetensors scan.ply")
def predict(
    model: Annotated[str, MODEL],
    scan: Annotated[str, SCAN],
    out: Annotated[Path | None, OUT] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B", help="Words to choose from. Default: the network's own.")
    ] = None,
    unit: Annotated[str | None, UNIT] = None,
    up: Annotated[str | None, UP] = None,
    force: Force = False,
) -> None:
    """Label any scan: points.ply, points.npz, and a page to look at. On a CPU, without a configuration or images."""
    from commands.scans import predict_scan, scan_call

    words = None if labels is None else [word.strip() for word in labels.split(",") if word.strip()]
    predict_scan(scan_call(model, scan, out, unit, up, force), words)


@app.command(epilog='Example: t4p query model.safetensors scan.ply "a red chair" table')
def query(
    model: Annotated[str, MODEL],
    scan: Annotated[str, SCAN],
    phrases: Annotated[list[str], typer.Argument(metavar="PHRASE...", help="What to look for, in words.")],
    out: Annotated[Path | None, OUT] = None,
    unit: Annotated[str | None, UNIT] = None,
    up: Annotated[str | None, UP] = None,
    force: Force = False,
) -> None:
    """Ask any scan in words: how well each phrase fits every point, as PLY, npz, and a page to ask further."""
    from commands.scans import query_scan, scan_call

    query_scan(scan_call(model, scan, out, unit, up, force), phrases)


@app.command(epilog="Example: t4p plan configs/pretrain/scannet.yaml configs/cluster/8x8.yaml")
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
    from t4p.config.files import command_of, load_for_command
    from t4p.config.tasks import FinetuneConfig, PretrainConfig
    from t4p.errors import ConfigError

    def nodes_of(cluster: ClusterConfig) -> tuple[int, int]:
        """Nodes, and GPUs of each."""
        return (
            cluster.num_nodes if nodes is None else nodes,
            cluster.gpus_per_node if gpus_per_node is None else gpus_per_node,
        )

    def world(cluster: ClusterConfig) -> int:
        num_nodes, num_gpus = nodes_of(cluster)
        return num_nodes * max(1, num_gpus)

    config = load_for_command(command_of(*split_arguments(arguments)), *split_arguments(arguments), world)
    if not isinstance(config, PretrainConfig | FinetuneConfig):
        raise ConfigError(
            "`t4p plan` sizes trainings, and this configuration is of none; name one of `t4p pretrain` or "
            "`t4p finetune`"
        )
    num_nodes, num_gpus = nodes_of(config.cluster)
    machine = (num_nodes, num_gpus, int(gpu_memory * 2**30), hours)
    if isinstance(config, PretrainConfig):
        from t4p.plan.job import plan_job

        job = plan_job(config, *machine)
    else:
        from t4p.plan.finetuning import plan_finetuning

        job = plan_finetuning(config, *machine)
    if as_json:
        typer.echo(json.dumps(job.to_json()))
        return
    from commands.plan import make_console, print_plan

    print_plan(job, make_console())


def _train(command: str, arguments: list[str]) -> None:
    """Be one worker of a training, to its end or until it is told to stop."""
    config = load_worker_config(command, arguments)
    from rich.console import Console

    from launch.progress import show_trainings
    from t4p.runs.going_on import how_it_goes_on
    from t4p.stop import asked, ending_on_signals
    from t4p.tasks.afterwards import is_finished, look_afterwards
    from t4p.tasks.job import run_watched
    from t4p.train.engine import stop_process_group

    console = Console()
    is_first = os.environ.get("RANK", "0") == "0"

    def tell(message: str) -> None:
        if is_first:
            typer.echo(message, err=True)

    def tell_stopped(signal_number: int) -> None:
        console.show_cursor()
        left = how_it_goes_on(Path(config.run.dir) / "checkpoints", config.train.resume)
        tell(f"stopped by {Signals(signal_number).name}: {left}")

    with ending_on_signals(config.train.save_on_stop, tell, tell_stopped):
        with show_trainings([""], console, "starting") if is_first else nullcontext({"": None}) as shows:
            run_watched(config, show=shows[""])
        stop_process_group()
        if stopped := bool(asked()) and not is_finished(config):
            tell_stopped(asked())  # here, where a second signal and the limit end what waits for a reader
    if stopped:
        raise typer.Exit(128 + asked())
    if not is_first:
        return
    for line in look_afterwards(config):
        typer.echo(line)
    if command == "finetune":
        from commands.run_report import tell_run_report

        tell_run_report(config)


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
