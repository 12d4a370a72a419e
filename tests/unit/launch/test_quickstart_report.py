from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from launch.quickstart_report import QuickstartReport, draw_losses, read_lines, show_table, summarise, write_report


def steps(count: int) -> list[dict[str, float]]:
    return [
        {"step": i, "loss": 20.0 - i, "loss_e": 12.0 - i / 2, "loss_d": 8.0 - i / 2, "samples_per_second": float(i)}
        for i in range(1, count + 1)
    ]


def summary(validation: list[dict[str, float]]) -> QuickstartReport:
    return summarise(steps(20), validation, "somewhere", 7, 1.0, 2.0)


def test_the_ends_are_averages_over_a_tenth_of_the_run() -> None:
    report = summary([])
    assert report.averaged_steps == 2
    assert report.first == {"loss": 18.5, "loss_e": 11.25, "loss_d": 7.25}
    assert report.last == {"loss": 0.5, "loss_e": 2.25, "loss_d": -1.75}
    assert report.frames_per_second == 10.5
    assert report.retrieval_before == report.retrieval_after == {}


def test_a_run_of_one_step_has_a_report() -> None:
    report = summarise(steps(1), [], "somewhere", 2, 0.0, 1.0)
    assert report.first == report.last


def test_scores_without_pairs_are_left_out() -> None:
    report = summary(
        [
            {"step": 0, "retrieval_e": 0.01, "retrieval_d": math.nan, "frames_e": 1, "frames_d": 0},
            {"step": 20, "retrieval_e": 0.5, "retrieval_d": math.nan, "frames_e": 1, "frames_d": 0},
        ]
    )
    assert report.retrieval_before == {"retrieval_e": 0.01}
    assert report.retrieval_after == {"retrieval_e": 0.5}


def test_the_file_and_the_table_say_the_same(tmp_path: Path) -> None:
    report = summary([{"step": 0, "retrieval_d": 0.004}, {"step": 20, "retrieval_d": 0.25}])
    write_report(report, tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["first"]["loss"] == 18.5
    assert written["retrieval_after"] == {"retrieval_d": 0.25}
    output = io.StringIO()
    show_table(report, Console(file=output, width=120))
    for text in ("18.5000", "0.5000", "0.004", "0.250", "7 frames, 20 steps"):
        assert text in output.getvalue()


def test_the_picture_shows_both_losses(tmp_path: Path) -> None:
    draw_losses(steps(20), tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    for color in ((31, 119, 180), (255, 127, 14)):
        drawn = np.abs(pixels - np.array(color)).max(axis=2) < 8
        assert np.ptp(np.nonzero(drawn)[1]) > pixels.shape[1] / 2, "a line across most of the picture"


def test_lines_of_a_missing_file_are_none(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "validation.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]
