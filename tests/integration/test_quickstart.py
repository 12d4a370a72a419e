"""`t4p quickstart --data`: from the user's frames, raw or packed, to a report. (`.ci/run` runs the one on rooms.)"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from shards.packing.pack import pack

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def quickstart(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "commands.main", "quickstart", "--out", str(out), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def steps_of(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]


def test_both_losses_fall_and_a_second_quickstart_from_s3_begins_anew(
    tmp_path: Path, tum_sample: Path, s3_bucket: str
) -> None:
    out = tmp_path / "quick start"  # paths may have spaces
    first = quickstart(out, "--data", str(tum_sample))
    assert first.returncode == 0, first.stdout + first.stderr
    report = json.loads((out / "report.json").read_text())
    assert steps_of(out) == list(range(1, report["num_steps"] + 1))
    for loss in ("loss_e", "loss_d"):
        assert math.isfinite(report["last"][loss])
        assert report["last"][loss] < report["first"][loss]
    assert set(report["retrieval_after"]) == {"retrieval_e", "retrieval_d"}
    assert "zero_shot_miou" not in report, "what needs labels is left out"
    assert "L_d (voxel, pixel)" in (out / "report.html").read_text()
    assert f"{report['last']['loss_d']:.4f}" in first.stdout

    pack("tum", tum_sample, s3_bucket)
    again = quickstart(out, "--data", s3_bucket)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"replacing {out / 'run'}" in again.stdout
    assert "resuming" not in (out / "run" / "logs" / "rank-0.log").read_text()
    assert steps_of(out) == list(range(1, report["num_steps"] + 1))
    report = json.loads((out / "report.json").read_text())
    assert (report["shards"], report["num_samples"]) == (s3_bucket, 4)
    assert report["seconds_of"].keys() == {"Pre-training"}
    assert report["problem"] is None


def test_a_wrong_secret_ends_in_one_message(tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    done = quickstart(tmp_path / "out", "--data", s3_bucket)
    assert done.returncode == 1
    assert s3_bucket.removeprefix("s3://") in done.stderr
    assert "AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_that_is_not_packed_ends_in_one_message(tmp_path: Path) -> None:
    done = quickstart(tmp_path / "out", "--data", str(tmp_path / "absent"))
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
