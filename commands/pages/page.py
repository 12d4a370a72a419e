"""What a page says, as records; templates/page.html is how it looks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from commands.pages.kit import json_element, render
from commands.pages.line_chart import NUM_COLORS, Chart, draw_chart
from commands.pages.scene_pair import ScenePair, draw_pair

LEAST_SHARE = 0.005  # of a row of a matrix, that is shown: what rounds to a per cent


@dataclass(frozen=True)
class Tile:
    """One headline figure, as text: "zero-shot mIoU", "31.0 %", "teacher 52.0, best trivial 4.1"."""

    label: str
    value: str
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """One thing that was done.

    Attributes:
        heading: what.
        text: how, one paragraph.
        seconds: wall time.
    """

    heading: str
    text: str
    seconds: float


@dataclass(frozen=True)
class Picture:
    """A PNG, what stands below it, and what a reader who cannot see it is told."""

    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class LegendEntry:
    """What a colour means; `color` is red, green, blue in 0 to 255."""

    name: str
    color: tuple[int, int, int]

    @property
    def hex(self) -> str:
        """As SVG and CSS spell it."""
        return "#{:02x}{:02x}{:02x}".format(*self.color)


@dataclass(frozen=True)
class Gallery:
    """Pictures of one sample, beside one another where there is room.

    Attributes:
        legend: stands beside the pictures, or below them on a narrow page.
        small: whether many such galleries stand below each other.
    """

    heading: str
    text: str
    pictures: tuple[Picture, ...]
    legend: tuple[LegendEntry, ...] = ()
    small: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """Scores in [0, 1], one of every column, nan where there is none; `hint` says what the name does not."""

    name: str
    values: tuple[float, ...]
    hint: str = ""


@dataclass(frozen=True)
class ScoreTable:
    """Scores, shown in per cent.

    Attributes:
        heading: what is compared.
        text: how it was scored, on what.
        row_title: what a row is: "predictor", "class".
        columns: what the values of every row are.
    """

    heading: str
    text: str
    row_title: str
    columns: tuple[str, ...]
    rows: tuple[ScoreRow, ...]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"{self.heading}, row {row.name}: {len(row.values)} value(s) for {len(self.columns)} column(s)"
                )


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Of every class, how its points were labelled.

    Attributes:
        counts: (K, K + 1) points by true and predicted label; the last column holds those that have none.
    """

    heading: str
    text: str
    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K, K) of the points of the row's class; nan where there are none."""
        totals = self.counts.sum(axis=1, keepdims=True)
        return np.divide(self.counts[:, :-1], totals, out=np.full((len(totals), len(totals)), np.nan), where=totals > 0)


@dataclass(frozen=True)
class Figures:
    """Numbers of any kind, as text: a row is a name, and one entry of every column."""

    heading: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Link:
    """A page that stands beside this one, `href` from here, and what can be done there."""

    name: str
    href: str
    text: str


@dataclass(frozen=True)
class Fact:
    """A version, the machine, the commit: whatever is worth a line."""

    name: str
    value: str


@dataclass(frozen=True)
class Page:
    """All of a report, in reading order; a part that is empty leaves no trace.

    Attributes:
        title: title of the document.
        summary: one sentence.
        tiles: headline figures.
        links: pages beside this one.
        galleries: samples in pictures.
        scenes: samples to turn.
        figures: what a terminal shows too.
        tables: scores.
        confusion: which labels are taken for which; None where there are none.
        charts: losses and scores over the steps.
        sections: what was done, in order.
        notes: what this does not show, a paragraph each.
        facts: versions and machine.
        next_commands: what to call next.
        command: what was called; may have several lines.
        data: the figures for programs, in a JSON element of the document.
    """

    title: str
    summary: str
    sections: tuple[Section, ...] = ()
    tiles: tuple[Tile, ...] = ()
    links: tuple[Link, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    scenes: tuple[ScenePair, ...] = ()
    figures: tuple[Figures, ...] = ()
    tables: tuple[ScoreTable, ...] = ()
    confusion: ConfusionMatrix | None = None
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    next_commands: tuple[str, ...] = ()
    command: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


def render_page(page: Page) -> str:
    """The whole document, which loads nothing from anywhere (commands/pages/kit.py)."""
    drawn = [
        DrawnChart(chart.title, tuple((index % NUM_COLORS, one.name) for index, one in enumerate(chart.series)), svg)
        for chart in page.charts
        if (svg := draw_chart(chart))
    ]
    scenes = [draw_pair(pair) for pair in page.scenes]
    return render(
        "page.html",
        data=page.data,
        scripts=("viewer.js", "scenes.js") if scenes else (),
        page=page,
        scenes=json_element([data for data, _ in scenes]),
        blobs=[blobs for _, blobs in scenes],
        galleries=[gallery for gallery in page.galleries if gallery.pictures],
        tables=[table for table in page.tables if table.rows],
        charts=drawn,
        has_means=any(chart.has_means for chart in page.charts),
        duration=format_duration,
        score=format_score,
        bar=bar_length,
        level=level_of,
    )


@dataclass(frozen=True)
class DrawnChart:
    """A chart as the template takes it: its title, the (colour, name) of each series, and its SVG."""

    title: str
    series: Sequence[tuple[int, str]]
    svg: str


def format_duration(seconds: float) -> str:
    """ "3.2 s", "45 s", "2 min 5 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_score(value: float) -> str:
    """A share in per cent, without the sign; an en dash where there is none."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "\N{EN DASH}"


def bar_length(value: float) -> str:
    """Of a bar that is 100 long where the score is 1; nothing where there is none."""
    return f"{100 * min(max(value, 0.0), 1.0):.1f}" if math.isfinite(value) else "0"


def level_of(share: float) -> int:
    """How strongly a cell of a matrix is tinted, 0 to 10: any share that shows as a number is."""
    return min(10, math.ceil(10 * share)) if math.isfinite(share) and share >= LEAST_SHARE else 0
