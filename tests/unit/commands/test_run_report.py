"""The report of a fine-tuning: its curves from what the run logged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from commands.run_report import charts_of, ends_of, write_run_report
from t4p.config.files import load_config_of
from t4p.config.tasks import InstanceConfig

STEPS = [
    {"step": step, "loss": 9.0 - step, "loss_task": 4.0, "loss_aux": 1.0, "loss_mask": 2.0, "seconds": 1.0}
    for step in range(1, 21)
]
SCORES = [{"step": 0, "ap": 0.1}, {"step": 20, "ap": 0.4, "ap50": 0.5, "ap50/chair": 0.5}]


def test_losses_their_parts_and_the_scores_of_the_task_have_a_chart_each() -> None:
    charts = {
        chart.title: {one.name: one.points for one in chart.series} for chart in charts_of("instance", STEPS, SCORES)
    }
    assert {title: list(series) for title, series in charts.items()} == {
        "Loss": ["loss", "loss_task", "loss_aux"],
        "Parts of loss_task": ["loss_mask"],
        "Validation": ["ap50"],
    }
    (_, before), (step, after) = charts["Validation"]["ap50"]
    assert math.isnan(before), "that line has none"
    assert (step, after) == (20, 0.5)
    assert charts_of("semantic", [], []) == ()
    assert ends_of(STEPS, "loss") == (7.5, -10.5), "means over two steps"
    assert ends_of([{"step": 0, "loss": 9.0}, *STEPS], "loss_task") == (4.0, 4.0), "of the lines that have it"


def test_a_run_without_validation_data_has_its_curves_and_says_that_nothing_was_scored(tmp_path: Path) -> None:
    config = load_config_of(
        InstanceConfig,
        ["configs/finetune/rooms.yaml", "configs/finetune/rooms_instance.yaml"],
        [f"run.dir={tmp_path}", "data.shards=[somewhere]"],
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in STEPS))
    for _ in range(2):  # a run that is started again when it is over writes it again
        page = write_run_report(config, "t4p finetune <it>").read_text()
    assert "nothing was scored" in page
    assert "loss 7.5 at the beginning, -10.5 at the end" in page
    assert "t4p finetune &lt;it&gt;" in page
    assert page.count("<svg viewBox") == 2
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["losses"]["loss"] == {"first": 7.5, "last": -10.5}
    assert report["scores"] is None
    assert report["num_steps"] == 20
    assert report["losses"]["loss_mask"]["last"] == pytest.approx(2.0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "loss": 0.')  # torn
    assert "20 steps" in write_run_report(config, "t4p finetune").read_text()
    (tmp_path / "metrics.jsonl").unlink()
    page = write_run_report(config, "t4p finetune").read_text()
    assert "0 steps, global batch size" in page
    assert "at the beginning" not in page
