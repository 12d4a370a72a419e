"""The report page in a real browser: it draws something and complains about nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands.pages.line_chart import Chart, Series
from commands.pages.page import Gallery, LegendEntry, Page, Picture, ScoreRow, ScoreTable, Section, Tile, render_page
from commands.pages.scene_view import RoomView, color_labels, label_palette

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LABELS = ("wall", "floor", "ceiling", "bed")
WIDTH, HEIGHT = 1280, 2200


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        if shutil.which(name):
            return name
    pytest.skip(
        f"none of {', '.join(BROWSERS)} is installed (Debian: apt-get install --no-install-recommends chromium)"
    )


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(0, 4, 0.04), np.arange(0, 3, 0.04)))
    floor = np.stack([x, y, np.zeros_like(x)], axis=1)
    bed = floor[(x > 1) & (x < 3) & (y > 1) & (y < 2)] + [0.0, 0.0, 0.5]
    labels = np.repeat([1, 3], [len(floor), len(bed)])
    view = RoomView.of(np.concatenate([floor, bed]))
    colors = (tuple(map(int, color)) for color in label_palette(len(LABELS)))
    losses = tuple((step, 5.0 - step / 20) for step in range(1, 61))
    page = Page(
        title="A report of a quickstart",
        summary="What was learned, in one sentence.",
        sections=(Section("Packed", "Rooms were packed.", 3.2), Section("Pre-trained", "Through Ray.", 61.0)),
        tiles=(Tile("zero-shot mIoU", "31.2 %", "teacher 52.0 %"),),
        gallery=Gallery(
            "One room",
            "From above.",
            (Picture("truth", "a bed on a floor", view.draw(color_labels(labels, len(LABELS)))),),
            tuple(LegendEntry(name, color) for name, color in zip(LABELS, colors, strict=True)),
        ),
        tables=(ScoreTable("Scores", "Of it.", "predictor", ("mIoU",), (ScoreRow("zero-shot", (0.312,)),)),),
        charts=(Chart("Pre-training", (Series("L_e", losses),)),),
        notes=("One seed.",),
        command="t4p quickstart",
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(page), encoding="utf-8")
    return path


def browse(browser: str, page_path: Path, profile: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Open the page without a window; the browser's own complaints about the machine are not the page's."""
    return subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", f"--window-size={WIDTH},{HEIGHT}"),
            *arguments,
            page_path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def complaints(stderr: str) -> list[str]:
    """What the page itself made the browser say: blocked resources, errors of scripts and styles."""
    return [line for line in stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_draws_the_page_without_a_complaint(browser: str, page_path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    run = browse(browser, page_path, tmp_path / "profile", f"--screenshot={picture}")
    assert run.returncode == 0, run.stderr
    assert complaints(run.stderr) == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    bed, first_curve = label_palette(len(LABELS))[3].astype(int), np.array([0x2F, 0x6D, 0xB5])
    for color in (bed, first_curve):  # the picture is decoded, the style sheet is applied
        assert (np.abs(pixels.astype(int) - color).max(axis=2) <= 3).sum() > 100


def test_the_browser_reads_what_was_written(browser: str, page_path: Path, tmp_path: Path) -> None:
    run = browse(browser, page_path, tmp_path / "profile", "--dump-dom")
    assert run.returncode == 0, run.stderr
    assert complaints(run.stderr) == []
    assert "<h1>A report of a quickstart</h1>" in run.stdout
    assert "<td>31.2</td>" in run.stdout


def test_a_page_that_would_load_something_is_noticed(browser: str, page_path: Path, tmp_path: Path) -> None:
    """Else the two tests above would pass whatever the browser said."""
    altered = tmp_path / "altered.html"
    html = page_path.read_text(encoding="utf-8")
    altered.write_text(html.replace("<main>", '<main><img src="missing.png" alt="">'), encoding="utf-8")
    run = browse(browser, altered, tmp_path / "profile", "--dump-dom")
    assert any("missing.png" in line for line in complaints(run.stderr)), run.stderr
