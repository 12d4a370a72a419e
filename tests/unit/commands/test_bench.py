"""`t4p bench data`: what starves, and what to change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from small_model import SMALL
from typer.testing import CliRunner

from commands.bench import advice, app, verdict
from t4p.plan.data_rates import DataRates, wanted_rate
from t4p.plan.stages import StageTimes

ROOT = Path(__file__).resolve().parents[3]
STAGES = StageTimes(
    read=0.001, read_wall=0.08, decode=0.004, points=0.005, stored_bytes=124_000.0, busy=1.0
)  # 100 samples a second and core
RATES = DataRates(
    stages=STAGES,
    num_workers=4,
    pixel_stride=1,
    num_cores=4,
    first_batch=0.5,
    samples_per_second=390.0,
    remote=True,
    wanted=None,
)


@pytest.mark.parametrize(
    ("rates", "starves", "move"),
    [
        (replace(RATES, samples_per_second=100.0), "storage", "Samples wait for storage"),
        (replace(RATES, samples_per_second=100.0, remote=False), "storage", "Samples wait for storage"),
        (
            replace(RATES, samples_per_second=100.0, remote=False, stages=replace(STAGES, read_wall=0.001)),
            "points",
            "data.pixel_stride=2",
        ),
        (RATES, "points", "data.pixel_stride=2"),
        (replace(RATES, stages=replace(STAGES, decode=0.005, points=0.004)), "decode", "--depth-codec zstd"),
        (replace(RATES, num_workers=2, samples_per_second=199.0), "points", "data.num_workers=4 uses all cores"),
        # Busy processors are no fault of the storage.
        (replace(RATES, samples_per_second=150.0, stages=replace(STAGES, busy=2.2)), "points", "data.pixel_stride=2"),
    ],
)
def test_what_starves_has_its_next_move(rates: DataRates, starves: str, move: str) -> None:
    assert rates.starves == starves
    assert move in advice(rates)


def test_a_run_that_wants_more_than_comes_is_told() -> None:
    assert "400.0 samples a second while it does not wait: more than come" in verdict(replace(RATES, wanted=400.0))
    assert "fewer than come" in verdict(replace(RATES, wanted=20.0))
    assert "busy: a process waits 1.5 times" in verdict(replace(RATES, stages=replace(STAGES, busy=2.5)))


def test_what_a_run_wants_is_read_off_its_steps(tmp_path: Path) -> None:
    lines = [{"samples_per_second": 10.0, "seconds": 0.4, "data_wait": wait} for wait in (0.3, 0.2, 0.2, 0.2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert wanted_rate(tmp_path / "metrics.jsonl") == pytest.approx(20.0)
    assert wanted_rate(tmp_path / "none.jsonl") is None


def test_real_frames_are_measured_stage_by_stage(tmp_path: Path) -> None:
    shards = f"data.shards=[{ROOT / 'tests' / 'data' / 'older' / 'frames'}]"
    call = ["data", str(ROOT / "configs" / "smoke.yaml"), *SMALL, shards, f"run.dir={tmp_path / 'run'}", "--json"]
    told = CliRunner().invoke(app, [*call, "--samples", "4", "data.num_workers=0"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)
    assert min(found["stages"][name] for name in ("read", "decode", "points")) > 0
    assert found["stages"]["stored_bytes"] > 1000
    assert found["samples_per_second"] > 0
    assert found["starves"] in ("storage", "decode", "points")
    assert not (tmp_path / "run").exists()
