"""What a run folder holds and refuses. All runs share one process here, to pay for its imports once."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_model import SMALL

from shards.packing.pack import pack

SCRIPT = """
import contextlib, io, json, sys
from t4p.config.files import load_config
from t4p.tasks.pretrain import run
outcomes = []
for overrides in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            run(load_config(["configs/smoke.yaml"], overrides))
            error = ""
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    outcomes.append((error, said.getvalue()))
print("OUTCOMES" + json.dumps(outcomes))
"""


@dataclass(frozen=True)
class Outcome:
    """What became of one run: the message of its error, "" for none, and what it said."""

    run_dir: Path
    error: str
    said: str


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> Mapping[str, Outcome]:
    """Every run of this file, by name; each in a folder of its name, one after the other."""
    folder = tmp_path_factory.mktemp("runs")
    shards = str(tmp_path_factory.mktemp("tum") / "shards")
    pack("tum", tum_sample, shards)
    older = folder / "first" / "checkpoints" / "step_00000002"
    scored = [f"data.validation_shards=[{shards}]", "data.image_size=[480, 640]", "data.pixel_stride=2"]
    planned = {
        "first": ["train.num_steps=3", "train.keep_checkpoints=2"],
        "mixed": [f"run.dir={folder / 'first'}", "train.num_steps=4", f"train.resume={older}"],
        "other": ["train.num_steps=3", "train.keep_checkpoints=1", f"train.resume={older}"],
        "taken": ["train.num_steps=1"],
        "blind": ["train.num_steps=2", "data.max_depth=0.01"],
        "wild": ["train.num_steps=9", "train.learning_rate=1e30"],
        "scored": [*scored, "train.num_steps=3", "train.validate_every=2"],
        "stage 0": ["train.num_steps=2", "train.grad_accum_steps=2", "train.zero_stage=0"],
        "stage 1": ["train.num_steps=2", "train.grad_accum_steps=2", "train.zero_stage=1"],
    }
    common = [*SMALL, "train.warmup_steps=0", "train.checkpoint_every=1", f"data.shards=[{shards}]"]
    calls = [[*common, f"run.dir={folder / name}", *overrides] for name, overrides in planned.items()]
    for name in ("taken", "scored"):
        (folder / name).mkdir()
    # Of a run that was killed before step 1.
    (folder / "scored" / "validation.jsonl").write_text('{"step": 0, "retrieval_e": 0.5}\n')
    with (folder / "taken" / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(calls)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
    assert "OUTCOMES" in done.stdout, done.stderr
    outcomes = json.loads(done.stdout.rpartition("OUTCOMES")[2])
    return {name: Outcome(folder / name, *outcome) for name, outcome in zip(planned, outcomes, strict=True)}


def checkpoints(run: Outcome) -> list[str]:
    return sorted(path.name for path in (run.run_dir / "checkpoints").glob("step_*"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def logged(run: Outcome) -> list[dict]:
    return lines(run.run_dir / "metrics.jsonl")


def test_runs_that_would_mix_are_refused_and_what_is_there_is_kept(runs: Mapping[str, Outcome]) -> None:
    first, mixed, other = runs["first"], runs["mixed"], runs["other"]
    older = first.run_dir / "checkpoints" / "step_00000002"
    assert first.error == ""
    assert mixed.error.startswith(f"ConfigError: train.resume is {older}, but ")
    assert "step_00000003" in mixed.error
    assert [line["step"] for line in logged(first)] == [1, 2, 3]
    assert other.error == ""
    # Each run has deleted its own older ones, and nothing of the other run, from which the second began.
    assert checkpoints(first) == ["step_00000002", "step_00000003"]
    assert checkpoints(other) == ["step_00000003"]
    assert "1 rank(s), 2 frame(s) each per micro-batch, steps 1 on" in first.said


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(runs: Mapping[str, Outcome]) -> None:
    taken = runs["taken"]
    assert taken.error.startswith(f"RunError: run.dir {taken.run_dir}: another run is in it")
    assert not (taken.run_dir / "metrics.jsonl").exists()


def test_what_teaches_nothing_ends_the_run(runs: Mapping[str, Outcome]) -> None:
    blind, wild = runs["blind"], runs["wild"]
    assert blind.error.startswith("RunError: step 1: no frame of the batch has a point that the image sees")
    assert wild.error.startswith("NotFiniteError: step")
    assert "the loss is" in wild.error
    for run in (blind, wild):
        for line in logged(run):
            assert line["loss"] == line["loss"], "no NaN is logged"


def test_validation_is_logged_once_per_step_also_when_a_run_begins_again(runs: Mapping[str, Outcome]) -> None:
    scored = runs["scored"]
    assert scored.error == ""
    scores = lines(scored.run_dir / "validation.jsonl")
    assert [line["step"] for line in scores] == [0, 2, 3]
    for line in scores:
        assert line["frames_e"] == 4
        assert 0 <= line["retrieval_e"] <= 1
        assert 0 <= line["retrieval_d"] <= 1


@pytest.mark.parametrize("stage", [0, 1])
def test_micro_batches_and_stages_log_a_gradient_norm(runs: Mapping[str, Outcome], stage: int) -> None:
    run = runs[f"stage {stage}"]
    assert run.error == ""
    steps = logged(run)
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["gradient_norm"] > 0.01 for line in steps)
    assert all(line["samples_skipped"] == 0 for line in steps)
