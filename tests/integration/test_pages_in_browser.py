"""Every page in a real browser, with names that would run as scripts: nothing runs, loads, complains or sticks out."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from commands.evaluate import page_of
from commands.pages.dataset_view import show_dataset
from commands.pages.line_chart import Chart, Series
from commands.pages.page import (
    Fact,
    Figures,
    Gallery,
    LegendEntry,
    Page,
    Picture,
    ScoreRow,
    ScoreTable,
    Section,
    Tile,
    render_page,
)
from commands.pages.palette import color_labels, label_colors
from commands.pages.scan_page import ScanAnswer, render_scan
from commands.pages.scene_pair import ScenePair
from commands.pages.scene_view import RoomView
from commands.pages.scored_scene import show_sample
from commands.quickstart.figures import Pretraining, QuickstartReport, RoomScores
from commands.quickstart.report import write_report
from shards.images import encode_depth
from shards.packing.pack import pack
from shards.sources.options import SourceOptions
from t4p.metrics.semantic import confusion, evaluate
from t4p.tasks.scored import Objects, ScoredSample

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EVIL = "</script><img src=x onerror=console.error('RAN')>"
LABELS = ("wall", "floor", EVIL, "bed")
WIDTHS = (1280, 390)
HEIGHT = 2200
# What a page cannot tell of itself: it runs no script. Its name, and how wide its content is.
LOOK = """<!DOCTYPE html><title>frames</title>
<script>
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument;
    console.log(`LOOKED ${frame.name} ${page.documentElement.scrollWidth} ${page.querySelectorAll("h1").length}`);
  }
});
</script>
"""


@pytest.fixture(scope="module")
def browser() -> str:
    for name in BROWSERS:
        if shutil.which(name):
            return name
    pytest.skip(
        f"none of {', '.join(BROWSERS)} is installed (Debian: apt-get install --no-install-recommends chromium)"
    )


def small_room() -> tuple[np.ndarray, np.ndarray]:
    """Points of a floor and of a bed on it, and the label of each."""
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(0, 4, 0.04), np.arange(0, 3, 0.04)))
    floor = np.stack([x, y, np.zeros_like(x)], axis=1)
    bed = floor[(x > 1) & (x < 3) & (y > 1) & (y < 2)] + [0.0, 0.0, 0.5]
    return np.concatenate([floor, bed]), np.repeat([1, 3], [len(floor), len(bed)])


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has every part a page can have."""
    points, labels = small_room()
    view = RoomView.of(points)
    colors = (tuple(map(int, color)) for color in label_colors(LABELS))
    losses = tuple((step, 5.0 - step / 20) for step in range(1, 61))
    page = Page(
        title="A report of a quickstart",
        summary=EVIL,
        sections=(Section(EVIL, EVIL, 3.2), Section("Pre-trained", "Through Ray.", 61.0)),
        tiles=(Tile(EVIL, "31.2 %", EVIL),),
        galleries=(
            Gallery(
                EVIL,
                EVIL,
                (Picture(EVIL, EVIL, view.draw(color_labels(labels, LABELS))),),
                tuple(LegendEntry(name, color) for name, color in zip(LABELS, colors, strict=True)),
            ),
        ),
        figures=(Figures(EVIL, EVIL, (EVIL,), ((EVIL, EVIL),)),),
        next_commands=(EVIL,),
        tables=(ScoreTable(EVIL, EVIL, EVIL, (EVIL,), (ScoreRow(EVIL, (0.312,), EVIL),)),),
        charts=(Chart(EVIL, (Series(EVIL, losses),), EVIL, EVIL),),
        notes=(EVIL,),
        command=EVIL,
        data={EVIL: [EVIL, math.nan]},
    )
    path = tmp_path_factory.mktemp("page") / "full.html"
    path.write_text(render_page(page), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pages(full_page: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The pages of all commands, by name, as the commands write them."""
    folder = tmp_path_factory.mktemp("pages")
    found = {"full": full_page}
    run = Pretraining(7, [{"step": i, "loss": 9.0 - i, "loss_e": 5.0, "loss_d": 4.0, "samples_per_second": 1.0}
                          for i in range(1, 4)])  # fmt: skip
    truth = np.repeat([0, 1, 2, 3], 10)
    scores = [evaluate(np.roll(truth, shift), truth, range(4)) for shift in (9, 4, 3, 6, 2)]
    for name, of_rooms in (("own data", None), ("rooms", RoomScores(LABELS, *scores, finetuned_share=0.5))):
        (folder / name).mkdir()
        write_report(QuickstartReport(EVIL, EVIL, run, (Section(EVIL, EVIL, 1.0),), of_rooms), folder / name)
        found[name] = folder / name / "report.html"

    clip = SimpleNamespace(pretrained="random")
    of_network = SimpleNamespace(task="pretrain", model=SimpleNamespace(clip=clip))
    network = SimpleNamespace(labels=LABELS, step=3, finetuned_share=1.0, config=of_network)
    counts = confusion(np.roll(truth, 9), truth, range(4))
    found["scores"] = folder / "scores.html"
    found["scores"].write_text(
        render_page(page_of(EVIL, (EVIL,), network, scores[0], counts, (labelled_scene(), scene_of_objects()))),
        encoding="utf-8",
    )

    found["scan"] = folder / "scan.html"
    found["scan"].write_text(render_scan(asked_room()), encoding="utf-8")

    raw = folder / "<img src=x onerror=console.error('RAN')>"
    for kind, image in (
        ("color", Image.fromarray(np.full((48, 64, 3), 90, np.uint8))),
        ("label", Image.fromarray(np.repeat(np.arange(48, dtype=np.uint8) // 12, 64).reshape(48, 64))),
    ):
        (raw / kind).mkdir(parents=True)
        image.save(raw / kind / "0.png")
    (raw / "depth").mkdir()
    (raw / "depth" / "0.png").write_bytes(encode_depth(np.full((48, 64), 2000, np.uint16)))
    (raw / "intrinsic.txt").write_text("60 0 31.5\n0 60 23.5\n0 0 1\n")
    (raw / "label_names.txt").write_text("\n".join(LABELS) + "\n")
    pack("folder", raw, str(folder / "shards"), source_options=SourceOptions(1000.0))
    for name, key in (("sheet", None), ("sample", f"{raw.name}/0")):
        found[name] = folder / f"{name}.html"
        show_dataset(str(folder / "shards"), key, found[name], 6)
    return found


def scored(predicted: np.ndarray | Objects, truth: np.ndarray | Objects) -> ScenePair:
    points = small_room()[0].astype(np.float32)
    sample = ScoredSample(EVIL, "mIoU", 0.5, points, predicted, truth, None, SimpleNamespace())
    return show_sample("best", sample, LABELS, np.full((len(points), 3), 90, np.uint8))


def labelled_scene() -> ScenePair:
    """The floor is taken for a bed."""
    labels = small_room()[1]
    return scored(np.full_like(labels, 3), labels)


def scene_of_objects() -> ScenePair:
    """The bed is found, and something that is not there."""
    points, labels = small_room()
    bed, corner = labels == 3, (points < 0.5).all(axis=1)
    masks = np.stack([bed, corner])
    boxes = np.array([[2.0, 1.5, 0.5, 2, 1, 0.1, 0], [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.3]])
    found = Objects(np.array([3, 2]), np.array([0.9, 0.8]), boxes, masks)
    return scored(found, Objects(np.array([3]), np.ones(1), boxes[:1], masks[:1]))


def asked_room() -> ScanAnswer:
    """A room that knows its labels: the cosine of a point with its own is 1, with others 0."""
    points, labels = small_room()
    return ScanAnswer(
        title=EVIL,
        summary=EVIL,
        points=points.astype(np.float32),
        colors=np.full((len(points), 3), 120, np.uint8),
        labels=LABELS,
        label_colors=label_colors(LABELS),
        ids=labels,
        shares=np.full(len(points), 0.8, np.float32),
        row_of_point=labels,
        words=LABELS,
        embeddings=np.eye(4, dtype=np.float32),
        cosines=np.eye(4, dtype=np.float32),
        others=range(4),
        label_of=range(4),
        logit_scale=10.0,
        phrases=(EVIL, "bed"),
        rule=EVIL,
        facts=(Fact("labels", EVIL),),
        command=EVIL,
        again=EVIL,
        boxes=np.array([[2.0, 1.5, 0.5, 2.0, 1.0, 0.2, 0.0]]),
    )


def browse(browser: str, page: Path, profile: Path, *arguments: str) -> list[str]:
    """Open a page without a window; what it made the browser say. Complaints about the machine are not the page's."""
    run = subprocess.run(
        [
            *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--allow-file-access-from-files"),
            # No WebGL by the processor: the browser says so, and a page with points draws them by itself.
            *("--hide-scrollbars", "--disable-software-rasterizer"),
            *arguments,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return [line for line in run.stderr.splitlines() if "CONSOLE" in line]


def look_at(browser: str, pages: Mapping[str, Path], folder: Path) -> list[str]:
    """What the browser says of these pages, each in a frame of each width."""
    frames = [
        f'<iframe name="{name.replace(" ", "-")}-{width}" src="{path.as_uri()}" width="{width}" height="{HEIGHT}">'
        "</iframe>"
        for name, path in pages.items()
        for width in WIDTHS
    ]
    index = folder / "frames.html"
    index.write_text(LOOK + "\n".join(frames), encoding="utf-8")
    return browse(browser, index, folder / "profile", "--dump-dom")


def test_no_page_runs_or_loads_anything_whatever_is_in_it_and_none_is_wider_than_its_window(
    browser: str, pages: Mapping[str, Path], tmp_path: Path
) -> None:
    said = look_at(browser, pages, tmp_path)
    looked = [re.search(r"LOOKED (\S+)-(\d+) (\d+) (\d+)", line) for line in said]
    assert [line for line, found in zip(said, looked, strict=True) if not found] == [], "no page complains"
    widths = {(found[1], int(found[2])): (int(found[3]), int(found[4])) for found in looked if found}
    assert widths == {(name.replace(" ", "-"), width): (width, 1) for name in pages for width in WIDTHS}


def test_what_would_run_is_noticed_and_the_policy_of_a_page_stops_it(
    browser: str, full_page: Path, tmp_path: Path
) -> None:
    """Else the test above would pass whatever a page does."""
    html = full_page.read_text(encoding="utf-8").replace("<main>", f"<main>{EVIL}")
    altered = {"forbidden": html, "allowed": re.sub('<meta http-equiv="Content-Security-Policy".*>', "", html)}
    ran = {}
    for name, text in altered.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "page.html").write_text(text, encoding="utf-8")
        said = look_at(browser, {name: tmp_path / name / "page.html"}, tmp_path / name)
        ran[name] = any('"RAN"' in line for line in said), any("Content Security Policy" in line for line in said)
    assert ran == {"forbidden": (False, True), "allowed": (True, False)}


def test_a_browser_draws_the_pictures_and_the_curves(browser: str, full_page: Path, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    size = f"--window-size={WIDTHS[0]},{HEIGHT}"
    assert browse(browser, full_page, tmp_path / "profile", size, f"--screenshot={picture}") == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (HEIGHT, WIDTHS[0], 3)
    bed, first_curve = label_colors(LABELS)[3].astype(int), np.array([0x2F, 0x6D, 0xB5])
    for color in (bed, first_curve):  # the picture is decoded, the style sheet is applied
        assert (np.abs(pixels.astype(int) - color).max(axis=2) <= 3).sum() > 100


# Uses a page of a scan as a reader would, and tells what came of it.
USE = """<!DOCTYPE html><title>frames</title>
<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
async function use(frame) {
  const page = frame.contentDocument, $ = (id) => page.getElementById(id), canvas = $("scene");
  const tell = (what, value) => console.log(`USED ${frame.width} ${what}: ${JSON.stringify(value)}`);
  const pointer = (type, x, y) => {
    const box = canvas.getBoundingClientRect();
    const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, pointerId: 1, buttons: 1 };
    canvas.dispatchEvent(new frame.contentWindow.PointerEvent(type, { ...place, bubbles: true }));
  };
  // Until the picture is another one: on a busy machine frames come late.
  const redrawn = async (before) => {
    for (let i = 0; i < 40 && canvas.toDataURL() === before; i++) await wait(100);
    return canvas.toDataURL();
  };
  const press = async (button) => {
    const before = canvas.toDataURL();
    button.click();
    return redrawn(before);
  };
  const ask = async (words) => {
    $("word").value = words;
    await press(page.querySelector("#ask button"));
    return $("answer").textContent;
  };
  for (let i = 0; i < 40 && !/drawn/.test($("status").textContent); i++) await wait(100);
  tell("status", $("status").textContent.replace(/\\d+ ms/, ""));
  const [color, labels, evil, bed] = $("views").children;
  tell("views", [color, labels, evil, bed].map((each) => each.textContent));
  const seen = [];
  for (const each of [color, labels, bed]) seen.push(await press(each));
  tell("different pictures", new Set(seen).size);
  tell("bed", $("answer").textContent);
  pointer("pointerdown", 0.5, 0.5);
  pointer("pointermove", 0.6, 0.52);
  pointer("pointerup", 0.6, 0.52);
  tell("turned", (await redrawn(seen[2])) !== seen[2] && $("picked").hidden);
  pointer("pointerdown", 0.5, 0.5);
  pointer("pointerup", 0.5, 0.5);
  tell("picked", [...$("picked").querySelectorAll("strong, td")].map((each) => each.textContent));
  tell("asked", await ask("Bed,  floor , BED"));
  tell("unknown", (await ask("dog")).split(";")[0]);
  const before = await press(labels);
  tell("hidden", before !== (await press($("legend").querySelector("button"))));
  tell("views after", $("views").children.length);
}
addEventListener("load", async () => { for (const frame of document.querySelectorAll("iframe")) await use(frame); });
</script>
"""


def test_the_page_of_a_scan_turns_picks_and_answers_at_every_width(
    browser: str, pages: Mapping[str, Path], tmp_path: Path
) -> None:
    index = tmp_path / "use.html"
    frames = [f'<iframe src="{pages["scan"].as_uri()}" width="{width}" height="900"></iframe>' for width in WIDTHS]
    index.write_text(USE + "\n".join(frames), encoding="utf-8")
    said = browse(browser, index, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=60000")
    used = [re.search(r'"USED (\d+) ([a-z ]+): (.*)", source', line) for line in said]
    assert [line for line, found in zip(said, used, strict=True) if not found] == [], "no page complains"
    told = {(int(found[1]), found[2]): json.loads(found[3].replace("\\n", "")) for found in used if found}
    num_points, num_bed = len(small_room()[0]), int((small_room()[1] == 3).sum())
    for width in WIDTHS:
        mine = {what: value for (of, what), value in told.items() if of == width}
        assert mine.pop("status") == f"{num_points:,} points, drawn in  by the processor"
        assert mine == {
            "views": ["colour", "labels", EVIL, "bed"],
            "different pictures": 3,
            "bed": f"bed: {100 * num_bed / num_points:.1f} % of the points score above 0.5.",
            "turned": True,
            # One word in front of three others: 1 / (1 + 3 exp(-10)).
            "picked": [
                "bed",
                EVIL,
                "0.00",
                "bed",
                "1.00",
                "bed",
                "1.00",
                "wall",
                "0.00",
                "floor",
                "0.00",
                EVIL,
                "0.00",
            ],
            "asked": "bed, floor: 0.0 % of the points score above 0.5.",
            "unknown": 'This page knows no "dog"',
            "hidden": True,
            "views after": 5,
        }


# Uses the scenes of a page of scores as a reader would.
TURN = """<!DOCTYPE html><title>frames</title>
<script>
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
async function use(frame, s) {
  const page = frame.contentDocument, $ = (id) => page.getElementById(`${id}-${s}`);
  const tell = (what, value) => console.log(`USED ${frame.width} ${s} ${what}: ${JSON.stringify(value)}`);
  const canvases = [0, 1].map((side) => page.getElementById(`canvas-${s}-${side}`));
  const pictures = () => canvases.map((canvas) => canvas.toDataURL());
  const after = async (act) => {
    const before = pictures();
    act();
    for (let i = 0; i < 40 && pictures().every((each, side) => each === before[side]); i++) await wait(100);
    await wait(300);
    return pictures().map((each, side) => each !== before[side]);
  };
  const pointer = (type, x, y) => {
    const box = canvases[0].getBoundingClientRect();
    const place = { clientX: box.left + x * box.width, clientY: box.top + y * box.height, pointerId: 1, buttons: 1 };
    canvases[0].dispatchEvent(new frame.contentWindow.PointerEvent(type, { ...place, bubbles: true }));
  };
  const views = (side) => [...page.getElementById(`views-${s}-${side}`).children];
  const names = () => [...$("legend").querySelectorAll("button")].map((each) => each.textContent);
  for (let i = 0; i < 40 && canvases.some((canvas) => !canvas.dataset.drawn); i++) await wait(100);
  tell("views", views(0).map((each) => each.textContent));
  tell("pressed", [0, 1].map((side) => views(side).findIndex((each) => each.ariaPressed === "true")));
  tell("differ", canvases[0].toDataURL() !== canvases[1].toDataURL());
  tell("names", names());
  pointer("pointerdown", 0.5, 0.5);
  pointer("pointerup", 0.5, 0.5);
  tell("picked", $("picked").textContent);
  tell("turned", await after(() => { pointer("pointerdown", 0.5, 0.5); pointer("pointermove", 0.6, 0.52);
    pointer("pointerup", 0.6, 0.52); }));
  tell("other layer", await after(() => views(1).at(-1).click()));
  tell("names then", names());
  tell("hidden", await after(() => $("legend").querySelector("button").click()));
}
addEventListener("load", async () => {
  for (const frame of document.querySelectorAll("iframe")) for (const s of [0, 1]) await use(frame, s);
});
</script>
"""


def test_the_scenes_of_scores_turn_together_and_paint_what_is_asked(
    browser: str, pages: Mapping[str, Path], tmp_path: Path
) -> None:
    index = tmp_path / "turn.html"
    frames = [f'<iframe src="{pages["scores"].as_uri()}" width="{width}" height="900"></iframe>' for width in WIDTHS]
    index.write_text(TURN + "\n".join(frames), encoding="utf-8")
    said = browse(browser, index, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=90000")
    used = [re.search(r'"USED (\d+) (\d) ([a-z ]+): (.*)", source', line) for line in said]
    assert [line for line, found in zip(said, used, strict=True) if not found] == [], "no page complains"
    told = {(int(found[1]), found[2], found[3]): json.loads(found[4].replace("\\n", "")) for found in used if found}
    both = {"pressed": [0, 1], "differ": True, "turned": [True, True], "other layer": [False, True]}
    for width in WIDTHS:
        of_labels, of_objects = (
            {what: value for (of, s, what), value in told.items() if (of, s) == (width, scene)} for scene in "01"
        )
        assert of_labels == {
            **both,
            "views": ["ground truth", "prediction", "right or wrong", "features"],
            "names": ["floor", "bed"],
            "picked": "ground truth: bed; prediction: bed; right or wrong: right",
            "names then": ["floor", "bed"],
            "hidden": [True, False],
        }
        assert of_objects == {
            **both,
            "views": ["ground truth", "prediction", "features"],
            "names": ["bed 1", f"not there: {EVIL}", "no object"],
            "picked": "ground truth: bed 1; prediction: bed 1",
            "names then": ["bed 1", "no object"],
            "hidden": [True, False],
        }
