"""The outcome of a quickstart: a record, a table, a file and a picture."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median

from rich.console import Console
from rich.table import Table

LOSSES = ("loss", "loss_e", "loss_d")
LOSS_TITLES = {"loss": "loss", "loss_e": "L_e (voxel, CLIP cell)", "loss_d": "L_d (voxel, pixel)"}
RETRIEVAL_TITLES = {"retrieval_e": "retrieval, L_e", "retrieval_d": "retrieval, L_d"}
RECORDED_VERSIONS = ("text4point", "torch", "deepspeed", "ray")

Lines = Sequence[dict[str, float]]


@dataclass(frozen=True)
class QuickstartReport:
    """What `report.json` holds.

    Attributes:
        shards: the dataset trained on.
        num_samples: frames in it.
        num_steps: optimizer steps.
        averaged_steps: how many steps at either end `first` and `last` average over.
        first, last: by loss name.
        retrieval_before, retrieval_after: top-1 scores on held-out frames, by name; empty without any.
        pack_seconds, train_seconds: wall time; training includes starting Ray and loading torch.
        frames_per_second: median over the steps.
        machine: cores and system, no names.
        versions: of the packages that matter.
    """

    shards: str
    num_samples: int
    num_steps: int
    averaged_steps: int
    first: dict[str, float]
    last: dict[str, float]
    retrieval_before: dict[str, float]
    retrieval_after: dict[str, float]
    pack_seconds: float
    train_seconds: float
    frames_per_second: float
    machine: str
    versions: dict[str, str]


def read_lines(path: Path) -> list[dict[str, float]]:
    """All records of a JSON-lines file; none where it is missing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summarise(
    steps: Lines, validation: Lines, shards: str, num_samples: int, pack_seconds: float, train_seconds: float
) -> QuickstartReport:
    """One record from the lines of a run.

    Args:
        steps: of metrics.jsonl, at least one.
        validation: of validation.jsonl, may be empty.
    """
    # One step of two frames is noisy: the ends are averages over a tenth of the run.
    averaged = max(1, len(steps) // 10)
    before, after = (validation[0], validation[-1]) if len(validation) > 1 else ({}, {})
    return QuickstartReport(
        shards=shards,
        num_samples=num_samples,
        num_steps=len(steps),
        averaged_steps=averaged,
        first={name: fmean(line[name] for line in steps[:averaged]) for name in LOSSES},
        last={name: fmean(line[name] for line in steps[-averaged:]) for name in LOSSES},
        retrieval_before=_scores(before),
        retrieval_after=_scores(after),
        pack_seconds=round(pack_seconds, 3),
        train_seconds=round(train_seconds, 3),
        frames_per_second=median(line["samples_per_second"] for line in steps),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions={name: version(name) for name in RECORDED_VERSIONS},
    )


def _scores(line: dict[str, float]) -> dict[str, float]:
    """The retrieval scores of a validation line; too few pairs give no score."""
    return {name: line[name] for name in RETRIEVAL_TITLES if name in line and math.isfinite(line[name])}


def write_report(report: QuickstartReport, path: Path) -> None:
    path.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


def show_table(report: QuickstartReport, console: Console) -> None:
    """Before and after, then the costs."""
    table = Table(title=f"Text4Point quickstart: {report.num_samples} frames, {report.num_steps} steps")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name in LOSSES:
        table.add_row(LOSS_TITLES[name], f"{report.first[name]:.4f}", f"{report.last[name]:.4f}")
    for name, after in report.retrieval_after.items():
        before = report.retrieval_before.get(name, math.nan)
        table.add_row(f"{RETRIEVAL_TITLES[name]} (held-out frames)", f"{before:.3f}", f"{after:.3f}")
    table.add_section()
    table.add_row("packing", "", f"{report.pack_seconds:.1f} s")
    table.add_row("training, Ray's start included", "", f"{report.train_seconds:.1f} s")
    table.add_row("frames per second, median step", "", f"{report.frames_per_second:.2f}")
    console.print(table)


def draw_losses(steps: Lines, path: Path) -> None:
    """Both losses over the steps, as a PNG."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    numbers = [line["step"] for line in steps]
    for name, color in (("loss_e", "tab:blue"), ("loss_d", "tab:orange")):
        axes.plot(numbers, [line[name] for line in steps], color=color, linewidth=1.8, label=LOSS_TITLES[name])
    axes.set(title="Pre-training losses", xlabel="optimizer step", ylabel="contrastive loss (nats)", ylim=(0, None))
    axes.margins(x=0.01)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
