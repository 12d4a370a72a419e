"""The report of a quickstart as one HTML file: no script, no font, no address in it, pictures and curves inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from commands.pages.line_chart import NUM_COLORS, Chart, draw_chart


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


@dataclass(frozen=True)
class Gallery:
    """Pictures of one scene, beside one another where there is room."""

    heading: str
    text: str
    pictures: tuple[Picture, ...]
    legend: tuple[LegendEntry, ...] = ()


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
        gallery: one scene in pictures.
        tables: scores.
        charts: losses.
        sections: what was done, in order.
        notes: what this does not show, a paragraph each.
        facts: versions and machine.
        command: what was called; may have several lines.
    """

    title: str
    summary: str
    sections: tuple[Section, ...]
    tiles: tuple[Tile, ...] = ()
    gallery: Gallery | None = None
    tables: tuple[ScoreTable, ...] = ()
    charts: tuple[Chart, ...] = ()
    notes: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    command: str = ""


def render_page(page: Page) -> str:
    """The whole document. All text is escaped; nothing in it is loaded from anywhere."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(page.title)}</title>
<style>{_CSS}</style>
</head>
<body>
<header>
<h1>{escape(page.title)}</h1>
<p class="summary">{escape(page.summary)}</p>
</header>
<main>
{_tiles(page.tiles)}
{_gallery(page.gallery)}
{"".join(_table(table) for table in page.tables)}
{_charts(page.charts)}
{_sections(page.sections)}
{_notes(page.notes)}
{_origin(page.facts, page.command)}
</main>
</body>
</html>
"""


def format_duration(seconds: float) -> str:
    """ "3.2 s", "45 s", "2 min 5 s"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_score(value: float) -> str:
    """A share in per cent, without the sign; an en dash where there is none."""
    return f"{100 * value:.1f}" if math.isfinite(value) else "\N{EN DASH}"


def _optional(tag: str, text: str, style: str = "") -> str:
    """An element, or nothing where there is no text."""
    opening = f'{tag} class="{style}"' if style else tag
    return f"<{opening}>{escape(text)}</{tag}>" if text else ""


def _tiles(tiles: tuple[Tile, ...]) -> str:
    if not tiles:
        return ""
    items = (
        f'<li class="card"><span class="label">{escape(tile.label)}</span>'
        f'<span class="value">{escape(tile.value)}</span>{_optional("span", tile.hint, "hint")}</li>'
        for tile in tiles
    )
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _gallery(gallery: Gallery | None) -> str:
    if gallery is None or not gallery.pictures:
        return ""
    pictures = (
        f'<figure class="card"><img src="data:image/png;base64,{base64.b64encode(picture.png).decode("ascii")}" '
        f'alt="{escape(picture.alt)}"><figcaption>{escape(picture.caption)}</figcaption></figure>'
        for picture in gallery.pictures
    )
    legend = _legend(
        f'<span class="swatch" style="background:rgb({",".join(map(str, entry.color))})"></span>{escape(entry.name)}'
        for entry in gallery.legend
    )
    return (
        f"<section><h2>{escape(gallery.heading)}</h2>{_optional('p', gallery.text)}"
        f'<div class="pictures">{"".join(pictures)}</div>{legend}</section>'
    )


def _legend(entries: Iterable[str]) -> str:
    items = "".join(f"<li>{entry}</li>" for entry in entries)
    return f'<ul class="legend">{items}</ul>' if items else ""


def _table(table: ScoreTable) -> str:
    if not table.rows:
        return ""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}{_optional("span", row.hint, "hint")}</th>'
        f"{''.join(f'<td>{format_score(value)}</td>' for value in row.values)}</tr>\n"
        for row in table.rows
    )
    # Reachable by keyboard, since it scrolls sideways where it is wider than the page.
    return (
        f"<section><h2>{escape(table.heading)}</h2>{_optional('p', table.text)}"
        f'<div class="card wide" tabindex="0" role="region" aria-label="{escape(table.heading)}">'
        f'<table><thead><tr><th scope="col">{escape(table.row_title)}</th>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="hint">All scores in per cent; a dash where there is nothing to score.</p></section>'
    )


def _charts(charts: tuple[Chart, ...]) -> str:
    drawn = "".join(_chart(chart) for chart in charts)
    if not drawn:
        return ""
    means = any(chart.has_means for chart in charts)
    text = "Thin: every step. Thick: the mean over a twentieth of the steps around it." if means else ""
    return f'<section><h2>Loss curves</h2>{_optional("p", text)}<div class="charts">{drawn}</div></section>'


def _chart(chart: Chart) -> str:
    svg = draw_chart(chart)
    if not svg:
        return ""
    legend = _legend(
        f'<span class="stroke series-{index % NUM_COLORS}"></span>{escape(one.name)}'
        for index, one in enumerate(chart.series)
    )
    return f'<figure class="card chart"><figcaption>{escape(chart.title)}</figcaption>{legend}{svg}</figure>'


def _sections(sections: tuple[Section, ...]) -> str:
    if not sections:
        return ""
    items = (
        f'<li><h3>{escape(section.heading)}<span class="time">{format_duration(section.seconds)}</span></h3>'
        f"{_optional('p', section.text)}</li>"
        for section in sections
    )
    return f'<section><h2>What was done</h2><ol class="card steps">{"".join(items)}</ol></section>'


def _notes(notes: tuple[str, ...]) -> str:
    paragraphs = "".join(_optional("p", note) for note in notes)
    return f'<section><h2>What this does not show</h2><div class="prose">{paragraphs}</div></section>' if notes else ""


def _origin(facts: tuple[Fact, ...], command: str) -> str:
    """Where the figures come from: command, versions, machine."""
    if not facts and not command:
        return ""
    rows = "".join(f"<dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd>" for fact in facts)
    listed = f'<dl class="card">{rows}</dl>' if rows else ""
    return f"<section><h2>How it was made</h2>{_optional('pre', command, 'card')}{listed}</section>"


_CSS = """
:root {
  --page: #f7f7f5; --card: #ffffff; --line: #e2e3e5; --text: #1d2024; --quiet: #5c636c;
  --series-0: #2f6db5; --series-1: #d9702a; --series-2: #3c8d40; --series-3: #8a4fa3;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1e2125; --line: #343940; --text: #e7e8ea; --quiet: #a0a7b0;
    --series-0: #6fa8e6; --series-1: #f0995c; --series-2: #74c278; --series-3: #bf8fd6;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 70rem; background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { margin: 0; font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; }
h2 { margin: 2.75rem 0 0.5rem; font-size: 1.3rem; line-height: 1.3; }
h3 { margin: 0; font-size: 1rem; display: flex; flex-wrap: wrap; gap: 0 1rem; justify-content: space-between; }
p { margin: 0.35rem 0 0.9rem; max-width: 48rem; }
.summary { margin: 0.6rem 0 0; font-size: 1.125rem; color: var(--quiet); }
.hint, .label, .time { color: var(--quiet); font-size: 0.875rem; font-weight: 400; }
.time { font-variant-numeric: tabular-nums; white-space: nowrap; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
ul, ol { list-style: none; margin: 0; padding: 0; }
.tiles { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 13rem), 1fr));
  margin-top: 1.75rem; }
.tiles li { padding: 0.9rem 1.1rem; display: flex; flex-direction: column; }
.value { font-size: 1.75rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
figure { margin: 0; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.pictures figure { overflow: hidden; }
.pictures img { display: block; width: 100%; height: auto; background: #fff; }
figcaption { padding: 0.6rem 1rem; font-weight: 600; }
.pictures figcaption { border-top: 1px solid var(--line); }
.legend { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin-top: 0.9rem; font-size: 0.875rem; }
.legend li { display: flex; align-items: center; gap: 0.45rem; }
.swatch { width: 0.9rem; height: 0.9rem; border-radius: 3px; border: 1px solid rgba(128, 128, 128, 0.5); }
.stroke { width: 1.2rem; height: 0; border-top: 3px solid; border-radius: 2px; }
.wide { overflow-x: auto; width: fit-content; min-width: min(100%, 40rem); max-width: 100%; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 1rem; text-align: right; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--quiet); font-size: 0.875rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
th:first-child { text-align: left; }
th .hint { display: block; }
.wide + .hint { margin-top: 0.5rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.chart { padding: 0.4rem 0.75rem 0.75rem; }
.chart figcaption { padding: 0.4rem 0.25rem 0; }
.chart .legend { margin: 0.1rem 0.25rem 0.5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-size: 12px; fill: var(--quiet); }
svg path { fill: none; stroke: currentColor; stroke-width: 2.2; stroke-linecap: round; stroke-linejoin: round; }
svg path.thin { stroke-width: 1; opacity: 0.35; }
.grid { stroke: var(--line); }
.series-0 { color: var(--series-0); }
.series-1 { color: var(--series-1); }
.series-2 { color: var(--series-2); }
.series-3 { color: var(--series-3); }
.steps { counter-reset: step; }
.steps li { counter-increment: step; position: relative; padding: 0.9rem 1.1rem 0.1rem 3.4rem; }
.steps li + li { border-top: 1px solid var(--line); }
.steps li::before {
  content: counter(step); position: absolute; left: 1.1rem; top: 0.9rem; width: 1.5rem; height: 1.5rem;
  border-radius: 50%; background: var(--line); font-size: 0.8rem; font-weight: 600; line-height: 1.5rem;
  text-align: center;
}
pre { margin: 0.35rem 0 1rem; padding: 0.8rem 1rem; white-space: pre-wrap; font-size: 0.85rem; line-height: 1.5; }
dl { margin: 0; padding: 0.7rem 1rem; display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1.5rem;
  font-size: 0.9rem; }
dt { color: var(--quiet); }
dd { margin: 0; min-width: 0; font-variant-numeric: tabular-nums; }
@media (max-width: 36rem) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  th, td { padding: 0.35rem 0.45rem; }
  svg text { font-size: 14px; }
}
"""
