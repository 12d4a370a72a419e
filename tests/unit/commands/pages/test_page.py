"""The report page: well formed, complete in itself, everything escaped, nothing empty."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest

from commands.pages.line_chart import Chart, Series
from commands.pages.page import (
    ConfusionMatrix,
    Fact,
    Figures,
    Gallery,
    LegendEntry,
    Link,
    Page,
    Picture,
    ScoreRow,
    ScoreTable,
    Section,
    Tile,
    bar_length,
    format_duration,
    format_score,
    level_of,
    render_page,
)

PNG = b"\x89PNG not a real one"
SMALL = Page("A report", "One sentence.", (Section("Packed", "Some frames.", 75.2),))
FULL = replace(
    SMALL,
    tiles=(Tile("zero-shot mIoU", "31.2 %", "teacher 52.0"),),
    galleries=(
        Gallery("A room", "From above.", (Picture("truth", "a room by class", PNG),), (LegendEntry("bed", (1, 2, 3)),)),
    ),
    figures=(Figures("In numbers", "", ("before", "after"), (("loss", "9.1", "3.2"),)),),
    next_commands=("t4p shards list x", "t4p shards show x"),
    tables=(
        ScoreTable(
            "Scores", "Of unseen rooms.", "predictor", ("mIoU", "furniture"), (ScoreRow("wall", (0.0414, 0.0)),)
        ),
        ScoreTable("By class", "", "class", ("ours",), (ScoreRow("ceiling", (math.nan,)), ScoreRow("bed", (1.0,)))),
    ),
    links=(Link("Ask it", "asked/index.html", "Try `bed`."),),
    confusion=ConfusionMatrix(
        "What is taken for what", "", ("wall", "bed", "lamp"), np.array([[93, 6, 1, 0], [0, 0, 0, 0], [0, 1, 999, 0]])
    ),
    charts=(Chart("Pre-training", (Series("L_e", ((1, 5.0), (2, 4.0))), Series("L_d", ((1, 3.0), (2, 2.0))))),),
    notes=("It is small.",),
    facts=(Fact("torch", "2.11.0"),),
    command="t4p pretrain 'data.shards=[x]'",
    data={"miou": 0.312, "iou": {"lamp": math.nan}},
)
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Document(HTMLParser):
    """Elements of a page; complains where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def texts_of(self, tag: str) -> list[str]:
        return [text for inside, text in self.texts if inside == tag]


@pytest.mark.parametrize("page", [SMALL, FULL])
def test_a_page_is_well_formed_and_loads_nothing(page: Page) -> None:
    html = render_page(page)
    document = Document(html)
    assert html.startswith("<!DOCTYPE html>")
    assert document.tags.count("script") == 1, "figures for programs, which nothing runs"
    assert not {"link", "iframe", "object", "embed", "base"} & set(document.tags)
    loaded = [value for name, value in document.attributes if name in ("src", "srcset", "data", "action")]
    assert all(value.startswith("data:image/png;base64,") for value in loaded)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", html, re.IGNORECASE)
    assert not [name for name, _ in document.attributes if name.startswith("on") or name == "style"]
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    (style,) = re.findall("<style>(.*?)</style>", html, re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert unescape(policy).split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"style-src 'sha256-{allowed}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_everything_given_stands_in_the_page() -> None:
    html = render_page(FULL)
    document = Document(html)
    assert document.texts_of("h1") == document.texts_of("title") == ["A report"]
    assert document.texts_of("td") == ["9.1", "3.2", "4.1", "0.0", "\N{EN DASH}", "100.0", "93", "6", "1", "100"]
    assert {"31.2 %", "teacher 52.0", "1 min 15 s", "L_d", "2.11.0", "t4p pretrain 'data.shards=[x]'"} <= {
        text for _, text in document.texts
    }
    assert ("alt", "a room by class") in document.attributes
    assert ("fill", "#010203") in document.attributes
    assert json.loads(document.texts_of("script")[0]) == {"miou": 0.312, "iou": {"lamp": None}}
    assert base64.b64encode(PNG).decode() in html


def test_parts_stand_in_reading_order_and_missing_ones_leave_no_heading() -> None:
    assert Document(render_page(FULL)).texts_of("h2") == [
        "Ask it",
        "A room",
        "In numbers",
        "Scores",
        "By class",
        "What is taken for what",
        "Curves",
        "What was done",
        "What this does not show",
        "What is next",
        "How it was made",
    ]
    assert Document(render_page(SMALL)).texts_of("h2") == ["What was done"]
    empty = Page("A report", "", (), galleries=(Gallery("A room", "", ()),), charts=(Chart("none", ()),))
    empty = replace(empty, tables=(ScoreTable("Scores", "", "class", ("x",), ()),))
    assert Document(render_page(empty)).texts_of("h2") == []


def test_no_text_becomes_an_element_or_ends_an_attribute() -> None:
    evil = "\"'><script>alert(1)</script>&amp;"
    page = Page(
        title=evil,
        summary=evil,
        sections=(Section(evil, evil, 1.0),),
        tiles=(Tile(evil, evil, evil),),
        links=(Link(evil, evil, evil),),
        galleries=(Gallery(evil, evil, (Picture(evil, evil, PNG),), (LegendEntry(evil, (0, 0, 0)),)),),
        figures=(Figures(evil, evil, (evil,), ((evil, evil),)),),
        tables=(ScoreTable(evil, evil, evil, (evil,), (ScoreRow(evil, (0.5,), evil),)),),
        confusion=ConfusionMatrix(evil, evil, (evil,), np.ones((1, 2), np.int64)),
        charts=(Chart(evil, (Series(evil, ((1, 2.0),)),), evil, evil),),
        notes=(evil,),
        facts=(Fact(evil, evil),),
        next_commands=(evil,),
        command=evil,
        data={evil: evil},
    )
    html = render_page(page)
    document = Document(html)
    assert html.count("<script") == html.count("</script") == 1
    assert json.loads(document.texts_of("script")[0]) == {evil: evil}
    assert set(document.tags) == set(Document(render_page(replace(page, title="x"))).tags)
    assert document.texts_of("h1") == [evil]
    assert document.texts_of("pre") == [evil, evil]
    assert ("alt", evil) in document.attributes


def test_a_row_that_does_not_fit_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Scores, row wall: 1 value\(s\) for 2 column\(s\)"):
        ScoreTable("Scores", "", "predictor", ("mIoU", "furniture"), (ScoreRow("wall", (0.1,)),))


def test_durations_and_scores_read_well() -> None:
    assert [format_duration(seconds) for seconds in (0.0, 3.21, 9.96, 59.6, 125.0)] == [
        "0.0 s",
        "3.2 s",
        "10 s",
        "1 min 0 s",
        "2 min 5 s",
    ]
    assert [format_score(value) for value in (0.0, 0.31249, 1.0, math.nan)] == ["0.0", "31.2", "100.0", "\N{EN DASH}"]


def test_a_cell_of_a_matrix_is_tinted_where_it_has_a_number_and_a_bar_is_as_long_as_its_score() -> None:
    shares = (0.0, 0.0049, 0.005, 0.1, 0.101, 1.0, math.nan)
    assert [level_of(share) for share in shares] == [0, 0, 1, 1, 2, 10, 0]
    assert [bar_length(value) for value in (0.0, 0.333, 1.0, math.nan)] == ["0.0", "33.3", "100.0", "0"]
    counts = np.array([[2, 1, 1], [0, 0, 0]])
    shares_of_rows = ConfusionMatrix("", "", ("a", "b"), counts).shares
    np.testing.assert_array_equal(shares_of_rows, [[0.5, 0.25], [math.nan, math.nan]])


def test_what_stands_between_backticks_is_code() -> None:
    note = "Call `t4p <x>` or `t4p`; not ` and <b>."
    document = Document(render_page(replace(SMALL, notes=(note, note.replace(" not `", "")))))
    assert document.texts_of("code") == ["t4p <x>", "t4p"]
    assert note in document.texts_of("p"), "one that has no partner stays"


def test_an_id_of_bytes_that_are_no_utf_8_is_spelled_out() -> None:
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    text = render_page(Page(title=name, summary=name, data={"name": name}))
    assert text.encode().count(rb"caf\udce9") == 4
    assert json.loads(Document(text).texts_of("script")[0]) == {"name": name}
