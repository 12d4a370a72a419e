"""`t4p quickstart --data`: from the user's frames, raw or packed, to a report. (`.ci/run` runs the one on rooms.)"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from rich.console import Console
from small_model import SMALL

from commands.quickstart.quickstart import OWNER_MARK
from commands.quickstart.quickstart import quickstart as run_here
from shards.packing.pack import pack
from t4p.config.tasks import PretrainConfig
from t4p.runs.checkpoint import write_marker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def quickstart(out: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "commands.main", "quickstart", "--out", str(out), *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def logged(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.ray
def test_both_losses_fall_in_a_quickstart_that_begins_anew(tmp_path: Path, tum_sample: Path) -> None:
    out = tmp_path / "quick start"  # paths may have spaces
    # As an earlier quickstart leaves it that was stopped: a run that would be taken for one to resume, and refused.
    checkpoint = out / "run" / "checkpoints" / "step_00000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    write_marker(checkpoint)
    (out / "run" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.0}\n' * 30)
    (out / OWNER_MARK).touch()
    done = quickstart(out, "--data", str(tum_sample))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"replacing {out / 'run'}" in done.stdout
    assert "resuming" not in (out / "run" / "logs" / "rank-0.log").read_text()
    report = json.loads((out / "report.json").read_text())
    assert [line["step"] for line in logged(out / "run")] == list(range(1, report["num_steps"] + 1))
    for loss in ("loss_e", "loss_d"):
        assert math.isfinite(report["last"][loss])
        assert report["last"][loss] < report["first"][loss]
    assert set(report["retrieval_after"]) == {"retrieval_e", "retrieval_d"}
    assert "zero_shot_miou" not in report, "what needs labels is left out"
    assert report["problem"] is None
    assert "L_d (voxel, pixel)" in (out / "report.html").read_text()
    assert f"{report['last']['loss_d']:.4f}" in done.stdout
    page = (out / "report.html").read_text()
    assert page.count("<img ") == 3 * 2, "colour and depth of the frames that were trained on"
    for after in report["retrieval_after"].values():
        assert f"<td>{after:.3f}</td>" in page
    (commands,) = re.findall(r"<h2>What is next</h2>\s*<pre class=\"card\">(.*?)</pre>", page, re.DOTALL)
    calls = [shlex.split(unescape(line)) for line in commands.splitlines()]
    assert [call[1:3] for call in calls] == [["shards", "show"], ["checkpoint", "export"]]
    for call in calls:
        moved = subprocess.run(
            [sys.executable, "-m", "commands.main", *call[1:]],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert moved.returncode == 0, moved.stderr
    assert (tmp_path / "contact-sheet.png").exists()


def test_a_quickstart_on_a_packed_dataset_in_s3_trains_on_it_as_it_is(
    tmp_path: Path, tum_sample: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Ray: one bare rank in its place."""
    pack("tum", tum_sample, s3_bucket)

    def train(config: PretrainConfig, num_workers: int, console: Console) -> None:
        small = [*SMALL, f"train.num_steps={config.train.num_steps}", f"run.dir={config.run.dir}"]
        shards = f"data.shards={json.dumps(config.data.shards)}"
        cache = f"data.cache_dir={tmp_path / 'cache'}"
        command = [sys.executable, "-m", "commands.main", "pretrain", "configs/smoke.yaml", *small, shards, cache]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=600)

    monkeypatch.setattr("commands.quickstart.quickstart.launch_training", train)
    assert run_here(s3_bucket, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["shards"], report["num_samples"]) == (s3_bucket, 4)
    assert report["seconds_of"].keys() == {"Pre-training"}
    assert report["problem"] is None
    assert not (tmp_path / "out" / "shards").exists()


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
