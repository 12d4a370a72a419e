from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from commands.pages.page import Section
from commands.quickstart.figures import Pretraining, QuickstartReport, RoomScores
from commands.quickstart.report import show_table, write_report
from t4p.metrics.semantic import evaluate
from t4p.runs.logs import read_lines

LABELS = ("wall", "floor", "ceiling", "chair", "lamp")
TRUTH = np.repeat([0, 1, 2, 3], [60, 20, 10, 10])  # no lamp


def steps(count: int) -> list[dict[str, float]]:
    return [
        {"step": i, "loss": 20.0 - i, "loss_e": 12.0 - i / 2, "loss_d": 8.0 - i / 2, "samples_per_second": float(i)}
        for i in range(1, count + 1)
    ]


def report_of(pretraining: Pretraining, scores: RoomScores | None = None) -> QuickstartReport:
    lines = [{"step": 1, "loss_task": 2.0}, {"step": 2, "loss_task": 1.0}]
    return QuickstartReport(
        command="t4p quickstart",
        shards="somewhere",
        pretraining=pretraining,
        sections=(Section("Packing", "Packed.", 1.0), Section("Pre-training", "Trained.", 2.0)),
        scores=scores,
        finetunings={"from random weights": lines} if scores else {},
    )


def wrong_by(num_points: int):
    """Scores of a prediction in which so many points of every class are taken for a lamp."""
    predicted = TRUTH.copy()
    for label in range(4):
        predicted[np.flatnonzero(label == TRUTH)[:num_points]] = 4
    return evaluate(predicted, TRUTH, range(5))


def room_scores(zero_shot: int = 4, finetuned: int = 2, scratch: int = 6) -> RoomScores:
    return RoomScores(
        LABELS,
        untrained=wrong_by(9),
        zero_shot=wrong_by(zero_shot),
        teacher=wrong_by(3),
        scratch=wrong_by(scratch),
        finetuned=wrong_by(finetuned),
        finetuned_share=0.5,
    )


def test_the_ends_are_averages_over_a_tenth_of_the_run() -> None:
    run = Pretraining(7, steps(20))
    assert run.averaged_steps == 2
    assert run.first == {"loss": 18.5, "loss_e": 11.25, "loss_d": 7.25}
    assert run.last == {"loss": 0.5, "loss_e": 2.25, "loss_d": -1.75}
    assert run.frames_per_second == 10.5
    assert run.retrieval(0) == run.retrieval(-1) == {}


def test_a_run_of_one_step_has_both_ends() -> None:
    run = Pretraining(2, steps(1))
    assert run.first == run.last


def test_scores_without_pairs_are_left_out() -> None:
    lines = [
        {"step": 0, "retrieval_e": 0.01, "retrieval_d": math.nan, "frames_e": 1, "frames_d": 0},
        {"step": 20, "retrieval_e": 0.5, "retrieval_d": math.nan, "frames_e": 1, "frames_d": 0},
    ]
    run = Pretraining(7, steps(20), lines)
    assert run.retrieval(0) == {"retrieval_e": 0.01}
    assert run.retrieval(-1) == {"retrieval_e": 0.5}


def test_the_files_and_the_table_say_the_same(tmp_path: Path) -> None:
    report = report_of(
        Pretraining(7, steps(20), [{"step": 0, "retrieval_d": 0.004}, {"step": 20, "retrieval_d": 0.25}])
    )
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["first"]["loss"] == 18.5
    assert written["retrieval_after"] == {"retrieval_d": 0.25}
    assert written["seconds"] == 3.0
    assert not [key for key in written if "miou" in key]
    page = (tmp_path / "report.html").read_text()
    assert "mIoU" not in page
    output = io.StringIO()
    show_table(report, Console(file=output, width=120))
    for text in ("18.5000", "0.5000", "0.004", "0.250", "by chance", "10.5", "2.0 s", "3.0 s"):
        assert text in output.getvalue()
        assert f"{text}<" in page, "every number of the terminal"
    assert "7 frames, 20 steps" in output.getvalue()


def test_scores_of_rooms_are_those_that_are_promised(tmp_path: Path) -> None:
    report = report_of(Pretraining(7, steps(20)), room_scores())
    write_report(report, tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    of_class = [1 - 4 / n for n in (60, 20, 10, 10)]  # what is taken for an absent class is a false negative
    assert written["zero_shot_miou"] == pytest.approx(np.mean(of_class))
    assert written["zero_shot_furniture_miou"] == pytest.approx(1 - 4 / 10)
    assert written["teacher_furniture_miou"] == pytest.approx(1 - 3 / 10)
    drawn_by_share = [share / (2 - share) for share in (0.6, 0.2, 0.1, 0.1)]
    assert written["trivial_miou"] == pytest.approx(np.mean(drawn_by_share))
    assert written["zero_shot_miou_before"] < written["scratch_miou"] < written["finetuned_miou"]
    assert written["teacher_miou"] > written["zero_shot_miou"]
    assert written["iou"]["finetuned"] == {
        "wall": pytest.approx(58 / 60), "floor": 0.9, "ceiling": 0.8, "chair": 0.8, "lamp": None
    }  # fmt: skip
    page = (tmp_path / "report.html").read_text()
    assert f"{100 * written['zero_shot_miou']:.1f} %" in page
    assert "Fine-tuning: loss of the head" in page


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (room_scores(), None),
        (room_scores(zero_shot=9), "looks at nothing"),
        (room_scores(finetuned=6), "no better than from scratch"),
        (None, None),
    ],
)
def test_what_did_not_come_out_is_said(scores: RoomScores | None, words: str | None, tmp_path: Path) -> None:
    report = report_of(Pretraining(7, steps(20)), scores)
    assert (report.problem is None) == (words is None)
    write_report(report, tmp_path)
    page, written = (tmp_path / "report.html").read_text(), json.loads((tmp_path / "report.json").read_text())
    assert written["problem"] == report.problem
    if words is not None:
        assert words in str(report.problem)
        assert f'<p class="summary">{report.problem}</p>' in page
        assert "needs fewer labels" not in page


def test_a_loss_that_did_not_fall_is_said() -> None:
    assert "did not fall" in str(report_of(Pretraining(7, steps(1))).problem)


def test_lines_of_a_missing_file_are_none(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "validation.jsonl") == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_what_fine_tuning_costs_a_class_is_said(tmp_path: Path) -> None:
    for zero_shot, finetuned, words in ((2, 3, "IoU of floor 90.0 to 85.0"), (4, 2, None)):
        write_report(report_of(Pretraining(7, steps(20)), room_scores(zero_shot, finetuned)), tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert ("Fine-tuning costs some classes" in page) == (words is not None)
        assert words is None or "ceiling 80.0 to 70.0, chair 80.0 to 70.0" in page
