"""The quickstart on procedural rooms: pixels teach points words, and words save labels. Minutes on two cores."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from commands.arguments import split_arguments
from commands.bars import progress_bar
from commands.pages.page import Gallery, LegendEntry, Link, Picture
from commands.pages.palette import color_labels, label_colors
from commands.pages.scene_view import CUT_HEIGHT, RoomView
from commands.quickstart.figures import QuickstartReport, RoomScores
from commands.quickstart.stages import Stages, collect_pretraining, count_workers, override
from commands.scans import ScanCall, query_scan
from launch.processes.side_by_side import Command, run_side_by_side
from launch.processes.stop_signals import Stopped
from launch.progress import follow_trainings
from launch.training import launch_training
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.scene import Scene
from t4p.config.data import EvaluatedDataConfig
from t4p.config.files import load_config, load_config_of
from t4p.config.tasks import PretrainConfig, SemanticConfig
from t4p.runs.checkpoint import checkpoints_in
from t4p.runs.logs import read_lines
from t4p.tasks.afterwards import next_commands

if TYPE_CHECKING:
    from t4p.metrics.semantic import SemanticScores
    from t4p.models.exported import ExportedNetwork

# Rooms of two series are never the same. Seeds 41 to 43 are those of the small CLIP; settings were chosen on seed 2.
TRAINING = "seed=1,rooms=80"
NUM_LABELLED = 4
LABELLED = f"seed=1,rooms={NUM_LABELLED}"
HELD_OUT = "seed=3,rooms=12"
SHOWN = "seed=3,rooms=1,first=0"
PRETRAIN_STEPS = 400
FINETUNE_STEPS = 120
STARTS = {"scratch": "random weights", "finetuned": "the pre-trained weights"}  # by run folder
FEW_LABELS = "configs/finetune/few_labels.yaml"  # for the pre-trained start; random weights know no words
FINETUNED_SHARES = {"scratch": 1.0, "finetuned": 0.5}  # of an export; the rest are the weights before
# What a user is left with, by run folder; that from scratch stays in its run folder.
EXPORTS = {"run": "pretrained.safetensors", "finetuned": "finetuned.safetensors"}
ASKED = ("bed", "sofa", "bookshelf")  # in the command that the quickstart ends with
ASKED_PAGE = "asked/index.html"  # beside the report


@dataclass(frozen=True)
class Rooms:
    """URLs of the packed rooms: frames to pre-train on, the labelled ones among them, frames held out, one scene."""

    training: str
    labelled: str
    held_out: str
    shown: str


def try_on_rooms(out: Path, command: str, console: Console) -> QuickstartReport:
    """Pack rooms, pre-train, ask in words, fine-tune with few labels from both starts, compare.

    Args:
        command: what was called, for the report.
        out: holds `shards/`, the run folders `run`, `scratch` and `finetuned`, and EXPORTS afterwards.

    Raises:
        LaunchError, ShardError: training or packing failed.
    """
    stages = Stages(console)
    num_workers = count_workers()
    with stages.stage(
        "Rooms",
        f"Furnished rooms were made from seeds, ray-cast to RGB-D frames with sensor noise, and packed into WebDataset "
        f"shards: {TRAINING} to pre-train on, {HELD_OUT} to score on, and one of these as a whole scene.",
    ):
        rooms = pack_rooms(out / "shards")
    config = pretrain_config(rooms, out / "run")
    held_out = EvaluatedDataConfig(shards=(rooms.held_out,))
    with stages.stage(
        "What there is before",
        "The frozen image tower named the pixels of the held-out frames by itself: the ceiling of what points can learn"
        " from it. The 3D network named their points with the random weights that pre-training begins with.",
    ):
        teacher, untrained = score_beginning(config, held_out)
    with stages.stage(
        "Pre-training",
        f"{num_workers} DeepSpeed worker(s) on a private Ray took {PRETRAIN_STEPS} steps of "
        f"{config.train.global_batch_size} frames: L_e draws bottleneck voxels to CLIP's cells, L_d voxels to the "
        "pixels of a 2D decoder, both against all other pairs of all workers. No label was read.",
    ):
        launch_training(config, num_workers, console)
    with stages.stage(
        "Zero-shot",
        "The checkpoint was exported to one file, which needs neither DeepSpeed nor the image tower. Every point of "
        "the held-out frames got the label whose text embedding is nearest.",
    ):
        exported = {"zero-shot": export_last(config)}
        scores = {"zero-shot": score(exported["zero-shot"], held_out)}
    checkpoints = {"scratch": None, "finetuned": last_checkpoint(config)}
    arguments = {name: finetune_arguments(rooms, out / name, start) for name, start in checkpoints.items()}
    tuned = {name: load_config_of(SemanticConfig, *split_arguments(given)) for name, given in arguments.items()}
    head_scales = [f"{each.train.head_learning_rate_scale:g}" for each in tuned.values()]
    with stages.stage(
        "Fine-tuning from both starts",
        f"{FINETUNE_STEPS} steps on the labelled frames of {NUM_LABELLED} of the training rooms, points alone, with "
        "learnable prompts: from random weights and from the pre-trained ones, side by side, each with one worker and "
        "without Ray (`t4p finetune`). One schedule, one seed and one order of frames. From random weights the head "
        f"begins with random ones too, at {head_scales[0]} times the learning rate of the rest; from the pre-trained "
        "weights it begins with the words, so that the first prediction is the zero-shot one, at "
        f"{head_scales[1]} times; of these weights the mean before and after fine-tuning was taken. Then both were "
        "scored on the same held-out points.",
    ):
        finetune_side_by_side(arguments, tuned, out, console)
        for name, each in tuned.items():
            exported[name] = export_last(each, FINETUNED_SHARES[name])
            scores[name] = score(exported[name], held_out)
    with stages.stage(
        "A scene", "One of the held-out rooms as a whole, labelled in both ways and drawn from one side."
    ):
        gallery = show_scene(rooms.shown, exported)
    with stages.stage(
        "Words",
        f"The pre-trained network was asked for {', '.join(ASKED)} in that room, as `t4p query` does; its page, where "
        f"further words can be typed, is {out / ASKED_PAGE}.",
    ):
        ask_room(out / EXPORTS["run"], rooms.shown, (out / ASKED_PAGE).parent)
    return QuickstartReport(
        command=command,
        shards=rooms.training,
        pretraining=collect_pretraining(config),
        sections=stages.sections,
        scores=RoomScores(
            labels=config.model.label_names,
            untrained=untrained,
            zero_shot=scores["zero-shot"],
            teacher=teacher,
            scratch=scores["scratch"],
            finetuned=scores["finetuned"],
            finetuned_share=exported["finetuned"].finetuned_share,
        ),
        finetunings={f"from {whence}": read_lines(out / name / "metrics.jsonl") for name, whence in STARTS.items()},
        gallery=gallery,
        links=(
            Link(
                "Ask it in words",
                ASKED_PAGE,
                f"The held-out room below, to turn. Press {', '.join(ASKED)}, or type any of "
                f"{', '.join(config.model.labels)}; several with commas, `chair, stool`, are one phrase. The first "
                "command of those that are next, at the end of this page, asks for other words, and of other scans.",
            ),
        ),
        next_commands=(
            shlex.join(["t4p", "query", str(out / EXPORTS["run"]), rooms.shown, *ASKED]),
            shlex.join(["t4p", "predict", str(out / EXPORTS["finetuned"]), rooms.shown]),
            *next_commands(tuned["finetuned"], last_checkpoint(tuned["finetuned"])),
        ),
    )


def pack_rooms(folder: Path) -> Rooms:
    """Make and pack every room there is need of."""
    urls = {}
    for name, source_format, series in (
        ("training", "synthetic", TRAINING),
        ("labelled", "synthetic", LABELLED),
        ("held_out", "synthetic", HELD_OUT),
        ("shown", "synthetic-scenes", SHOWN),
    ):
        urls[name] = str(folder / name)
        pack(source_format, series, urls[name], num_workers=2)
    return Rooms(**urls)


def pretrain_config(rooms: Rooms, run_dir: Path) -> PretrainConfig:
    """configs/pretrain/rooms.yaml, as long as a quickstart has time for."""
    return load_config(
        ["configs/pretrain/rooms.yaml"],
        [
            override("run.dir", str(run_dir)),
            override("data.shards", [rooms.training]),
            override("train.num_steps", PRETRAIN_STEPS),
            override("train.checkpoint_every", PRETRAIN_STEPS),
        ],
    )


def finetune_arguments(rooms: Rooms, run_dir: Path, start: Path | None) -> list[str]:
    """The command line of `t4p finetune`: configs/finetune/rooms.yaml; pre-trained weights with FEW_LABELS over it.

    Args:
        start: a checkpoint of the pre-training; None is from scratch.
    """
    return [
        "configs/finetune/rooms.yaml",
        *([] if start is None else [FEW_LABELS]),
        override("run.dir", str(run_dir)),
        override("data.shards", [rooms.labelled]),
        override("model.pretrained", None if start is None else str(start)),
        override("train.num_steps", FINETUNE_STEPS),
        override("train.checkpoint_every", FINETUNE_STEPS),
    ]


def finetune_side_by_side(
    arguments: Mapping[str, Sequence[str]], configs: Mapping[str, SemanticConfig], out: Path, console: Console
) -> None:
    """Fine-tune with each of these arguments, at once.

    Args:
        arguments: command line of `t4p finetune`, by the name of the run folder in `out`.
        configs: what they say.

    Raises:
        LaunchError: one of them failed.
        SystemExit: the command was told to stop (Ctrl-C, SIGTERM); every process has been ended.
    """
    for name in arguments:
        console.print(f"run folder: {out / name}", soft_wrap=True, highlight=False)
    commands = {
        f"the fine-tuning from {STARTS[name]}": Command(
            [sys.executable, "-m", "commands.main", "finetune", *given], out / name / "logs" / "rank-0.log"
        )
        for name, given in arguments.items()
    }
    followed = {f"from {STARTS[name]}": config for name, config in configs.items()}
    try:
        with follow_trainings(followed, console, "starting") as update:
            run_side_by_side(commands, update)
    except Stopped as stop:
        console.print(f"stopped by {stop}")
        raise SystemExit(128 + stop.signal_number) from None


def score_beginning(config: PretrainConfig, held_out: EvaluatedDataConfig) -> tuple[SemanticScores, SemanticScores]:
    """Scores of the image tower, and of the network before its first step."""
    from t4p.tasks.pretrain import untrained_network
    from t4p.tasks.teacher import score_teacher

    with progress_bar("the image tower") as on_progress:
        teacher = score_teacher(config, held_out, on_progress)
    return teacher, score(untrained_network(config), held_out)


def last_checkpoint(config: PretrainConfig | SemanticConfig) -> Path:
    """The checkpoint of the last step of a run that has ended."""
    return checkpoints_in(Path(config.run.dir) / "checkpoints")[-1]


def export_last(config: PretrainConfig | SemanticConfig, finetuned_share: float = 1.0) -> ExportedNetwork:
    """The last checkpoint of a run, exported under its name of EXPORTS, or beside it, and read again."""
    from t4p.models.exported import load_exported_network
    from t4p.tasks.export import export_checkpoint

    run_dir = Path(config.run.dir)
    path = run_dir.parent / EXPORTS[run_dir.name] if run_dir.name in EXPORTS else run_dir / "model.safetensors"
    export_checkpoint(last_checkpoint(config), path, finetuned_share=finetuned_share)
    return load_exported_network(path)


def score(exported: ExportedNetwork, held_out: EvaluatedDataConfig) -> SemanticScores:
    """The scores of a network on the held-out points."""
    from t4p.tasks.evaluate import score_network

    with progress_bar("scoring") as on_progress:
        return score_network(exported, held_out, on_progress)


def ask_room(model: Path, scan: str, folder: Path) -> None:
    """Ask a network for the words of ASKED, as `t4p query` does."""
    command = shlex.join(["t4p", "query", str(model), scan, *ASKED, "--out", str(folder)])
    query_scan(ScanCall(str(model), scan, folder, unit=None, up=None, force=True, command=command), ASKED)


def show_scene(url: str, exported: Mapping[str, ExportedNetwork]) -> Gallery:
    """One whole room as colour, truth and three predictions, from one side."""
    from t4p.tasks.evaluate import label_points

    scene: Scene = DatasetReader(url).read_scene(0, 0)
    scored = EvaluatedDataConfig(shards=(url,), num_workers=0)
    zero_shot = exported["zero-shot"]
    ((asked, truth),) = label_points(zero_shot, scored)
    ((from_scratch, _),) = label_points(exported["scratch"], scored)
    ((learnt, _),) = label_points(exported["finetuned"], scored)
    view = RoomView.of(scene.points)
    pictures = [Picture("Colour", "The room as it was scanned.", view.draw(scene.rgb))]
    for caption, labels, alt in (
        ("Truth", truth, "The class of every point."),
        (
            "Zero-shot",
            asked,
            "The class whose name is nearest to the point's feature; no label was seen.",
        ),
        ("From scratch", from_scratch, f"The class by the head, from random weights, trained on {NUM_LABELLED} rooms."),
        ("Fine-tuned", learnt, f"The class by the head, fine-tuned on {NUM_LABELLED} rooms."),
    ):
        pictures.append(Picture(caption, alt, view.draw(color_labels(labels.numpy(), zero_shot.labels))))
    return Gallery(
        heading="A held-out room",
        text=(
            f"{scene.scene_id}, {len(scene.points):,} points; nothing was trained or chosen on it. The pictures leave "
            f"out what is above {CUT_HEIGHT:g} m and the two near walls."
        ),
        pictures=tuple(pictures),
        legend=tuple(
            LegendEntry(label, (int(color[0]), int(color[1]), int(color[2])))
            for label, color in zip(zero_shot.labels, label_colors(zero_shot.labels), strict=True)
        ),
    )
