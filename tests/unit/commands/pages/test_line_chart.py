"""Curves as SVG: where the pen goes, round ticks, gaps."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from commands.pages.line_chart import Chart, Series, draw_chart, nice_ticks, running_mean


def path_points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.]+)", path)]


def paths(svg: str) -> list[str]:
    return re.findall(r' d="([^"]*)"', svg)


@pytest.mark.parametrize("factor", [1e-4, 1.0, 37.0, 1e5])
@pytest.mark.parametrize("low", [0.0, -3.0, 2.0])
def test_ticks_enclose_the_values_and_are_few(low: float, factor: float) -> None:
    ticks = nice_ticks(low * factor, 7.3 * factor, 5)
    assert ticks[0] <= low * factor * (1 - 1e-9) or ticks[0] == pytest.approx(low * factor)
    assert ticks[-1] >= 7.3 * factor * (1 - 1e-9)
    assert 3 <= len(ticks) <= 7
    steps = {round((b - a) / factor, 9) for a, b in itertools.pairwise(ticks)}
    assert len(steps) == 1


def test_one_value_has_ticks() -> None:
    assert nice_ticks(4.0, 4.0, 5)
    assert nice_ticks(0.0, 0.0, 5)
    assert len(paths(draw_chart(Chart("", (Series("", ((1.0, 0.0),)),))))) == 1


def test_a_falling_curve_goes_right_and_down_from_the_frame_of_zero() -> None:
    (path,) = paths(draw_chart(Chart("losses", (Series("loss", ((1, 4.0), (2, 3.0), (3, 1.0))),))))
    drawn = path_points(path)[1:]  # the pen is put down on the first point, then drawn to it
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert [y for _, y in drawn] == sorted(y for _, y in drawn)
    by_value = [(y - drawn[0][1]) for _, y in drawn]
    assert by_value[2] == pytest.approx(3 * by_value[1], abs=0.2)  # linear


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    points = ((1, 4.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 1.0))
    (path,) = paths(draw_chart(Chart("", (Series("", points),))))
    assert path.count("M") == 3
    assert "nan" not in path
    assert draw_chart(Chart("", (Series("", ((1, math.nan),)),))) == ""
    assert draw_chart(Chart("", ())) == ""


def test_a_long_curve_is_drawn_thin_with_its_mean_over_it() -> None:
    points = tuple((step, 3.0 + (-1) ** step) for step in range(100))
    svg = draw_chart(Chart("", (Series("", points),)))
    assert 'class="series-0 thin"' in svg
    assert 'class="series-0"' in svg
    assert len(paths(svg)) == 2


def test_the_mean_is_over_the_finite_neighbours() -> None:
    assert running_mean([(1, 1.0), (2, 2.0), (3, 6.0), (4, math.nan)]) == [(1, 1.5), (2, 3.0), (3, 4.0), (4, 6.0)]
    assert math.isnan(running_mean([(1, math.nan)])[0][1])


def test_words_are_escaped_and_told_to_those_who_do_not_see() -> None:
    svg = draw_chart(Chart("<b>", (Series('"x"', ((1, 4.0), (2, 3.0))),), y_label="a & b"))
    assert "<b>" not in svg
    assert 'aria-label="&lt;b&gt;: &#34;x&#34; from 4 to 3"' in svg
    assert "a &amp; b" in svg


@pytest.mark.parametrize(("values", "lowest"), [((8.0, 6.0), 6.0), ((8.0, 1.0), 0.0), ((-1.0, 3.0), -1.0)])
def test_an_axis_begins_at_zero_unless_that_would_flatten_the_curve(values: tuple[float, ...], lowest: float) -> None:
    svg = draw_chart(Chart("loss", (Series("a", tuple(enumerate(values, start=1))),)))
    assert min(map(float, re.findall(r'text-anchor="end">([-0-9.]+)<', svg))) == lowest
