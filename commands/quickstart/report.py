"""The outcome of a quickstart: records, a table, report.json and report.html."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from commands.pages.line_chart import Chart, Series
from commands.pages.page import (
    Fact,
    Figures,
    Gallery,
    Page,
    ScoreRow,
    ScoreTable,
    Section,
    Tile,
    format_score,
    render_page,
)
from shards.results import write_result
from shards.synthetic.furniture import STRUCTURE_NAMES
from t4p.metrics.retrieval import NUM_CANDIDATES
from t4p.metrics.semantic import SemanticScores, best_trivial_miou

LOSSES = ("loss", "loss_e", "loss_d")
LOSS_TITLES = {"loss": "loss", "loss_e": "L_e (voxel, CLIP cell)", "loss_d": "L_d (voxel, pixel)"}
RETRIEVAL_TITLES = {"retrieval_e": "retrieval, L_e", "retrieval_d": "retrieval, L_d"}
NOTABLE_LOSS = 0.05  # of IoU
RECORDED_VERSIONS = ("text4point", "torch", "deepspeed", "ray", "open_clip_torch", "numpy")

Lines = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Pretraining:
    """How a pre-training went.

    Attributes:
        num_samples: frames it had.
        steps: the lines of metrics.jsonl, at least one.
        validation: those of validation.jsonl, may be empty.
    """

    num_samples: int
    steps: Lines
    validation: Lines = ()

    @property
    def averaged_steps(self) -> int:
        """How many steps at either end `first` and `last` average over: one step of a few frames is noisy."""
        return max(1, len(self.steps) // 10)

    @property
    def first(self) -> dict[str, float]:
        """By loss."""
        return {name: fmean(line[name] for line in self.steps[: self.averaged_steps]) for name in LOSSES}

    @property
    def last(self) -> dict[str, float]:
        """By loss."""
        return {name: fmean(line[name] for line in self.steps[-self.averaged_steps :]) for name in LOSSES}

    @property
    def frames_per_second(self) -> float:
        """Median over the steps."""
        return median(line["samples_per_second"] for line in self.steps)

    def retrieval(self, index: int) -> dict[str, float]:
        """Top-1 scores before (0) or after (-1), by name; too few pairs, or no frames held out, give none."""
        if len(self.validation) < 2:
            return {}
        line = self.validation[index]
        return {name: line[name] for name in RETRIEVAL_TITLES if name in line and math.isfinite(line[name])}


@dataclass(frozen=True)
class RoomScores:
    """Everything that was scored on the held-out rooms, on the same points.

    Attributes:
        labels: names by class id.
        untrained, zero_shot: the 3D network by the nearest text embedding, before and after pre-training.
        teacher: the frozen image tower.
        scratch, finetuned: the fine-tuned head, from random weights and from the pre-trained ones.
        finetuned_share: share of the weights of `finetuned`; the rest are the pre-trained ones.
    """

    labels: tuple[str, ...]
    untrained: SemanticScores
    zero_shot: SemanticScores
    teacher: SemanticScores
    scratch: SemanticScores
    finetuned: SemanticScores
    finetuned_share: float

    @property
    def trivial_miou(self) -> float:
        """Mean IoU of the best predictor that looks at nothing."""
        return best_trivial_miou(self.zero_shot.support.values())

    def furniture_miou(self, scores: SemanticScores) -> float:
        """Without wall, floor and ceiling."""
        return scores.miou_of(index for index, label in enumerate(self.labels) if label not in STRUCTURE_NAMES)

    def to_json(self) -> dict[str, Any]:
        named = {
            "teacher": self.teacher,
            "zero_shot": self.zero_shot,
            "scratch": self.scratch,
            "finetuned": self.finetuned,
        }
        return {
            "zero_shot_miou_before": self.untrained.miou,
            "zero_shot_miou": self.zero_shot.miou,
            "zero_shot_furniture_miou": self.furniture_miou(self.zero_shot),
            "teacher_miou": self.teacher.miou,
            "teacher_furniture_miou": self.furniture_miou(self.teacher),
            "trivial_miou": self.trivial_miou,
            "scratch_miou": self.scratch.miou,
            "finetuned_miou": self.finetuned.miou,
            "finetuned_share": self.finetuned_share,
            "iou": {name: scores.to_json(self.labels)["iou"] for name, scores in named.items()},
        }


@dataclass(frozen=True)
class QuickstartReport:
    """What a quickstart found.

    Attributes:
        command: what was called.
        shards: the dataset trained on.
        pretraining: its losses.
        sections: what was done, in order, with the wall time of each.
        scores: on rooms; None on data of the user's own.
        finetunings: the lines of metrics.jsonl of the fine-tunings, by name.
        gallery: pictures of one held-out scene, or of frames of the user's own.
        next_commands: what to call next.
    """

    command: str
    shards: str
    pretraining: Pretraining
    sections: tuple[Section, ...]
    scores: RoomScores | None = None
    finetunings: Mapping[str, Lines] = field(default_factory=dict)
    gallery: Gallery | None = None
    next_commands: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Wall time of all sections."""
        return sum(section.seconds for section in self.sections)

    @property
    def problem(self) -> str | None:
        """What did not come out as it should, if anything."""
        run, scores = self.pretraining, self.scores
        if not run.last["loss"] < run.first["loss"]:
            return "the loss did not fall; something is wrong with the data or the configuration"
        if scores is None:
            return None
        if not scores.zero_shot.miou > max(scores.untrained.miou, scores.trivial_miou):
            return "zero-shot, the network knows no more than one that looks at nothing; pre-training did not work"
        if not scores.finetuned.miou > scores.scratch.miou:
            return "fine-tuned from the pre-trained weights it is no better than from scratch"
        return None


def read_lines(path: Path) -> list[dict[str, float]]:
    """All records of a JSON-lines file; none where it is missing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_report(report: QuickstartReport, folder: Path) -> None:
    """report.json for programs, report.html for people."""
    for name, text in {
        "report.json": json.dumps(to_json(report), indent=2) + "\n",
        "report.html": render_page(page_of(report)),
    }.items():
        with write_result(folder / name, force=True) as partial:  # of a folder that is the quickstart's own
            partial.write_text(text, encoding="utf-8")


def to_json(report: QuickstartReport) -> dict[str, Any]:
    """The figures at the top; those that need labels are left out where there were none."""
    run = report.pretraining
    return {
        **({} if report.scores is None else report.scores.to_json()),
        "problem": report.problem,
        "seconds": round(report.seconds, 1),
        "seconds_of": {section.heading: round(section.seconds, 1) for section in report.sections},
        "command": report.command,
        "shards": report.shards,
        "num_samples": run.num_samples,
        "num_steps": len(run.steps),
        "averaged_steps": run.averaged_steps,
        "first": run.first,
        "last": run.last,
        "retrieval_before": run.retrieval(0),
        "retrieval_after": run.retrieval(-1),
        "frames_per_second": run.frames_per_second,
        "machine": describe_machine(),
        "versions": _versions(),
    }


def show_table(report: QuickstartReport, console: Console) -> None:
    """Before and after, then the costs."""
    run = report.pretraining
    table = Table(title=f"Text4Point quickstart: {run.num_samples} frames, {len(run.steps)} steps")
    for column in FIGURE_COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for section in (run_figures(report), score_figures(report.scores), cost_figures(report)):
        for row in section:
            table.add_row(*row)
        table.add_section()
    console.print(table)


FIGURE_COLUMNS = ("", "before", "after")
FigureRow = tuple[str, str, str]  # of these columns


def run_figures(report: QuickstartReport) -> tuple[FigureRow, ...]:
    """Losses, and retrieval on the frames held out, with what chance would reach."""
    run = report.pretraining
    losses = [(LOSS_TITLES[name], f"{run.first[name]:.4f}", f"{run.last[name]:.4f}") for name in LOSSES]
    before = run.retrieval(0)
    found = [
        (f"{RETRIEVAL_TITLES[name]} (held-out frames)", f"{before.get(name, math.nan):.3f}", f"{after:.3f}")
        for name, after in run.retrieval(-1).items()
    ]
    chance = f"{1 / NUM_CANDIDATES:.3f}"
    return (*losses, *found, *([("  by chance", chance, chance)] if found else []))


def score_figures(scores: RoomScores | None) -> tuple[FigureRow, ...]:
    """Mean IoU in per cent; none without labels."""
    if scores is None:
        return ()
    return (
        ("zero-shot mIoU %, held-out rooms", format_score(scores.untrained.miou), format_score(scores.zero_shot.miou)),
        ("  the image tower it learns from", "", format_score(scores.teacher.miou)),
        ("  best that looks at nothing", "", format_score(scores.trivial_miou)),
        (
            "fine-tuned mIoU %: from scratch, pre-trained",
            format_score(scores.scratch.miou),
            format_score(scores.finetuned.miou),
        ),
    )


def cost_figures(report: QuickstartReport) -> tuple[FigureRow, ...]:
    """Rates and wall times."""
    return (
        ("pre-training, frames per second", "", f"{report.pretraining.frames_per_second:.1f}"),
        *((section.heading, "", f"{section.seconds:.1f} s") for section in report.sections),
        ("all of it", "", f"{report.seconds:.1f} s"),
    )


def page_of(report: QuickstartReport) -> Page:
    """The report as it is read."""
    run, scores = report.pretraining, report.scores
    charts = [
        Chart(
            "Pre-training: contrastive losses",
            tuple(Series(LOSS_TITLES[name], _curve(run.steps, name)) for name in ("loss_e", "loss_d")),
        )
    ]
    if report.finetunings:
        series = tuple(Series(name, _curve(lines, "loss_task")) for name, lines in report.finetunings.items())
        charts.append(Chart("Fine-tuning: loss of the head", series))
    figures = Figures(
        "In numbers",
        f"Losses before and after are means over {run.averaged_steps} step(s) at either end; retrieval finds a voxel's "
        f"own pixel among {NUM_CANDIDATES}.",
        FIGURE_COLUMNS[1:],
        (*run_figures(report), *score_figures(scores), *cost_figures(report)),
    )
    galleries = () if report.gallery is None else (report.gallery,)
    facts = (*(Fact(name, value) for name, value in _versions().items()), Fact("machine", describe_machine()))
    if scores is None:
        return Page(
            title="Text4Point on your data",
            summary=report.problem
            or f"Pre-trained on {run.num_samples} frames of {report.shards} for {len(run.steps)} steps.",
            sections=report.sections,
            galleries=galleries,
            figures=(figures,),
            charts=tuple(charts),
            notes=OWN_DATA_NOTES,
            next_commands=report.next_commands,
            facts=facts,
            command=report.command,
            data=to_json(report),
        )
    return Page(
        title="Text4Point: from images to points to words",
        summary=report.problem
        or (
            "A 3D network learnt from unlabelled RGB-D frames what a frozen CLIP sees in their pixels. It can then be "
            "asked in words, and needs fewer labels. All scores are of rooms that nothing was trained or chosen on."
        ),
        tiles=_tiles(scores),
        galleries=galleries,
        figures=(figures,),
        tables=_tables(scores),
        charts=tuple(charts),
        sections=report.sections,
        notes=(*_costs_of_finetuning(scores), *ROOM_NOTES),
        next_commands=report.next_commands,
        facts=facts,
        command=report.command,
        data=to_json(report),
    )


OWN_DATA_NOTES = (
    (
        "Scores need labels, and words need a CLIP that knows your images: this short run used towers with random "
        "weights. `t4p pretrain configs/pretrain/own.yaml` takes a real one; docs/pretraining.md says what to set."
    ),
)
ROOM_NOTES = (
    (
        "The rooms are procedural, and so is what can be learnt from them: furniture of boxes and cylinders, whose "
        "colours say nothing of the class. No figure here is one of real scans."
    ),
    (
        "The small CLIP was made beforehand from other rooms of the same kind, with captions of whole images and with "
        "exact region labels: it has been told what it sees where, as LSeg was (configs/clip/small-rooms.scores.json). "
        "That is why its dense labels are good at all; what is shown here is that they reach points without labels."
    ),
    (
        "One seed, and a schedule that fits in a few minutes. Longer fine-tuning narrows the gap between the starts, "
        "and each has what is best for it: from random weights there are none before that a mean could be taken with. "
        "benchmarks/RESULTS.md has three seeds, and the schedule that is best for training from scratch."
    ),
)


def _costs_of_finetuning(scores: RoomScores) -> tuple[str, ...]:
    """A note on the classes that fine-tuning has made worse than zero-shot by more than NOTABLE_LOSS."""
    lost = [
        f"{label} {format_score(scores.zero_shot.iou[row])} to {format_score(scores.finetuned.iou[row])}"
        for row, label in enumerate(scores.labels)
        if scores.zero_shot.iou[row] - scores.finetuned.iou[row] > NOTABLE_LOSS
    ]
    if not lost:
        return ()
    note = (
        f"Fine-tuning costs some classes, which the labelled rooms show little of: IoU of {', '.join(lost)}. A smaller "
        "share of the fine-tuned weights keeps more of them (`t4p checkpoint export --finetuned-share`)."
    )
    return (note,)


def _tiles(scores: RoomScores) -> tuple[Tile, ...]:
    gain = 100 * (scores.finetuned.miou - scores.scratch.miou)
    furniture = format_score(scores.furniture_miou(scores.zero_shot))
    return (
        Tile(
            "zero-shot mIoU",
            f"{format_score(scores.zero_shot.miou)} %",
            f"no label seen; before pre-training {format_score(scores.untrained.miou)}, looking at nothing at best "
            f"{format_score(scores.trivial_miou)}",
        ),
        Tile(
            "of its teacher",
            f"{100 * scores.zero_shot.miou / scores.teacher.miou:.0f} %",
            f"the image tower reaches {format_score(scores.teacher.miou)} on the same points",
        ),
        Tile(
            "zero-shot, furniture",
            f"{furniture} %",
            f"without wall, floor and ceiling; teacher {format_score(scores.furniture_miou(scores.teacher))}",
        ),
        Tile(
            "few labels: gain",
            f"{gain:+.1f} points",
            f"fine-tuned mIoU {format_score(scores.finetuned.miou)} from the pre-trained weights, "
            f"{format_score(scores.scratch.miou)} from scratch",
        ),
    )


def _tables(scores: RoomScores) -> tuple[ScoreTable, ...]:
    nothing = scores.trivial_miou, math.nan
    rows = [ScoreRow("looking at nothing", nothing, "the best of one class, uniform, and by the classes' shares")]
    for name, found, hint in (
        ("untrained, zero-shot", scores.untrained, "random weights, nearest text embedding"),
        ("pre-trained, zero-shot", scores.zero_shot, "nearest text embedding; points alone, no image"),
        ("teacher, zero-shot", scores.teacher, "the frozen image tower, at the pixel of each point"),
        ("fine-tuned from scratch", scores.scratch, "random weights, few labels"),
        (
            "fine-tuned, pre-trained",
            scores.finetuned,
            (
                "the same labels, steps and seed; a head that begins with the words; the mean of the weights before "
                f"({1 - scores.finetuned_share:.0%}) and after ({scores.finetuned_share:.0%})"
            ),
        ),
    ):
        rows.append(ScoreRow(name, (found.miou, scores.furniture_miou(found)), hint))
    columns = (scores.teacher, scores.zero_shot, scores.scratch, scores.finetuned)
    return (
        ScoreTable(
            "Scores on held-out rooms",
            f"ScanNet's protocol on {scores.zero_shot.num_points:,} labelled points, one confusion matrix over all.",
            "predictor",
            ("mIoU", "furniture mIoU"),
            tuple(rows),
        ),
        ScoreTable(
            "By class",
            "IoU on the same points.",
            "class",
            ("teacher", "zero-shot", "scratch", "fine-tuned"),
            tuple(
                ScoreRow(label, tuple(found.iou[index] for found in columns))
                for index, label in enumerate(scores.labels)
            ),
        ),
    )


def _curve(lines: Lines, name: str) -> tuple[tuple[float, float], ...]:
    return tuple((line["step"], line[name]) for line in lines)


def describe_machine() -> str:
    """Cores, system and Python; no names."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _versions() -> dict[str, str]:
    return {name: version(name) for name in RECORDED_VERSIONS}
