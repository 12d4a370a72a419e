"""How a quickstart is shown: a table, report.json and report.html."""

from __future__ import annotations

import json
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from commands.pages.line_chart import Chart, Series
from commands.pages.page import (
    Fact,
    Figures,
    Page,
    ScoreRow,
    ScoreTable,
    Tile,
    format_score,
    render_page,
)
from commands.quickstart.figures import (
    FIGURE_COLUMNS,
    LOSS_TITLES,
    Lines,
    QuickstartReport,
    RoomScores,
    cost_figures,
    describe_machine,
    recorded_versions,
    run_figures,
    score_figures,
    to_json,
)
from shards.results import write_result
from t4p.metrics.retrieval import NUM_CANDIDATES

NOTABLE_LOSS = 0.05  # of IoU


def write_report(report: QuickstartReport, folder: Path) -> None:
    """report.json for programs, report.html for people."""
    for name, text in {
        "report.json": json.dumps(to_json(report), indent=2) + "\n",
        "report.html": render_page(page_of(report)),
    }.items():
        with write_result(folder / name, force=True) as partial:  # of a folder that is the quickstart's own
            partial.write_text(text, encoding="utf-8")


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
    facts = (*(Fact(name, value) for name, value in recorded_versions().items()), Fact("machine", describe_machine()))
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
        links=report.links,
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
