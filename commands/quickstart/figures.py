"""What a quickstart found: its records, and the numbers of the terminal, of the page and of report.json."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import fmean, median
from typing import Any

from commands.pages.page import Gallery, Link, Section, format_score
from shards.synthetic.furniture import STRUCTURE_NAMES
from t4p.metrics.retrieval import NUM_CANDIDATES
from t4p.metrics.semantic import SemanticScores, best_trivial_miou

LOSSES = ("loss", "loss_e", "loss_d")
LOSS_TITLES = {"loss": "loss", "loss_e": "L_e (voxel, CLIP cell)", "loss_d": "L_d (voxel, pixel)"}
RETRIEVAL_TITLES = {"retrieval_e": "retrieval, L_e", "retrieval_d": "retrieval, L_d"}
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
        links: pages beside the report.
        next_commands: what to call next.
    """

    command: str
    shards: str
    pretraining: Pretraining
    sections: tuple[Section, ...]
    scores: RoomScores | None = None
    finetunings: Mapping[str, Lines] = field(default_factory=dict)
    gallery: Gallery | None = None
    links: tuple[Link, ...] = ()
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
        "versions": recorded_versions(),
    }


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


def describe_machine() -> str:
    """Cores, system and Python; no names."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def recorded_versions() -> dict[str, str]:
    return {name: version(name) for name in RECORDED_VERSIONS}
