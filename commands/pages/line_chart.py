"""Curves over optimizer steps as an SVG that stands inside a page; colours come from the page's CSS classes.

By hand rather than by matplotlib: its SVG is a document with addresses in it, is fixed to one font size, and cannot
follow a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

NUM_COLORS = 4  # CSS classes series-0 to series-3; more series begin again
_WIDTH, _HEIGHT = 440, 250  # of the view box; the page scales it
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 24, 40
_FEW = 40  # points of a curve that need no mean to be read
_FROM_ZERO = 0.4  # of the largest value: curves that stay above this share of it would be flat on an axis from 0
_MEAN_SHARE = 0.05  # of a curve's points, that a mean runs over


@dataclass(frozen=True)
class Series:
    """One curve: (step, value) pairs in order; values that are not finite leave a gap."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Curves that share both axes."""

    title: str
    series: tuple[Series, ...]
    y_label: str = "loss"
    x_label: str = "optimizer step"

    @property
    def finite(self) -> list[tuple[float, float]]:
        """The points of all series that can be drawn."""
        return [point for one in self.series for point in one.points if math.isfinite(point[1])]

    @property
    def has_means(self) -> bool:
        """Whether curves are drawn thin, with a mean drawn thick."""
        return any(len(one.points) > _FEW for one in self.series)


def draw_chart(chart: Chart) -> Markup:
    """An `<svg>` element; empty where no value is finite.

    Curves of many points are drawn thin, and thick the mean over the twentieth of them around each point.
    """
    if not chart.finite:
        return Markup("")
    steps, values = zip(*chart.finite, strict=True)
    x_ticks = nice_ticks(min(steps), max(steps), 6)
    low, high = min(values), max(values)
    y_ticks = nice_ticks(min(0.0, low) if low < _FROM_ZERO * high else low, high, 5)
    frame = _Frame((min(steps), max(steps)), (min(y_ticks[0], *values), max(y_ticks[-1], *values)))
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(_WIDTH, _HEIGHT, _describe(chart)),
        *(_y_tick(frame, tick) for tick in y_ticks),
        *(_x_tick(frame, tick) for tick in x_ticks if min(steps) <= tick <= max(steps)),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "middle", chart.x_label),
        _text(4, 12, "start", chart.y_label),
    ]
    for index, one in enumerate(chart.series):
        style = f"series-{index % NUM_COLORS}"
        if len(one.points) > _FEW:
            parts.append(_curve(frame, one.points, f"{style} thin"))
            parts.append(_curve(frame, running_mean(one.points), style))
        else:
            parts.append(_curve(frame, one.points, style))
    return Markup("\n").join([*parts, Markup("</svg>")])


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Up to `most` + 1 round numbers, evenly spaced; the first is not above `low`, the last not below `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean of the finite values around each point; around the ends, of those that are there."""
    reach = max(1, round(_MEAN_SHARE * len(points) / 2))
    means = []
    for index, (step, _) in enumerate(points):
        around = [value for _, value in points[max(0, index - reach) : index + reach + 1] if math.isfinite(value)]
        means.append((step, sum(around) / len(around) if around else math.nan))
    return means


@dataclass(frozen=True)
class _Frame:
    """From data to the view box."""

    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return _LEFT + (step - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values
        return _HEIGHT - _BOTTOM - (value - low) / ((high - low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _curve(frame: _Frame, points: Sequence[tuple[float, float]], style: str) -> Markup:
    """A path with a gap wherever a value is not finite; round caps make a lone point a dot."""
    commands = []
    pen_is_down = False
    for step, value in points:
        if not math.isfinite(value):
            pen_is_down = False
            continue
        at = f"{frame.x(step):.1f} {frame.y(value):.1f}"
        commands.append(f"L{at}" if pen_is_down else f"M{at}L{at}")
        pen_is_down = True
    return Markup('<path class="{}" d="{}"/>').format(style, "".join(commands))


def _y_tick(frame: _Frame, tick: float) -> Markup:
    y = frame.y(tick)
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(_LEFT, _WIDTH - _RIGHT, y, y)
    return line + _text(_LEFT - 6, y + 4, "end", f"{tick:g}")


def _x_tick(frame: _Frame, tick: float) -> Markup:
    return _text(frame.x(tick), _HEIGHT - _BOTTOM + 16, "middle", f"{tick:g}")


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _describe(chart: Chart) -> str:
    """What a reader without the picture is told."""
    ends = []
    for one in chart.series:
        values = [value for _, value in one.points if math.isfinite(value)]
        if values:
            ends.append(f"{one.name} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{chart.title}: {'; '.join(ends)}"
