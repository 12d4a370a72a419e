"""What a run folder holds and refuses. Several runs share one process here, to pay for its imports once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_model import SMALL

from shards.packing.pack import pack

SCRIPT = """
import json, sys
from t4p.config.files import load_config
from t4p.tasks.pretrain import run
outcomes = []
for overrides in json.loads(sys.argv[1]):
    try:
        run(load_config(["configs/smoke.yaml"], overrides))
        outcomes.append("")
    except Exception as error:
        outcomes.append(f"{type(error).__name__}: {error}")
print("OUTCOMES" + json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tum_sample):
    folder = tmp_path_factory.mktemp("tum") / "shards"
    pack("tum", tum_sample, str(folder))
    return folder


def run_all(shards, *runs):
    """Run each list of overrides in turn; the message of each one's error, '' for none."""
    common = [*SMALL, "train.warmup_steps=0", "train.checkpoint_every=1", f"data.shards=[{shards}]"]
    calls = [[*common, *overrides] for overrides in runs]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(calls)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "OUTCOMES" in done.stdout, done.stderr
    return json.loads(done.stdout.rpartition("OUTCOMES")[2]), done.stdout


def names(checkpoints):
    return sorted(path.name for path in checkpoints.glob("step_*"))


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_runs_that_would_mix_are_refused_and_what_is_there_is_kept(shards, tmp_path):
    run_dir, other = tmp_path / "run", tmp_path / "other"
    older = run_dir / "checkpoints" / "step_00000002"
    outcomes, output = run_all(
        shards,
        [f"run.dir={run_dir}", "train.num_steps=3", "train.keep_checkpoints=2"],
        [f"run.dir={run_dir}", "train.num_steps=4", f"train.resume={older}"],
        [f"run.dir={other}", "train.num_steps=3", "train.keep_checkpoints=1", f"train.resume={older}"],
    )
    assert outcomes[0] == ""
    assert outcomes[1].startswith(f"ConfigError: train.resume is {older}, but ")
    assert "step_00000003" in outcomes[1]
    assert [line["step"] for line in lines(run_dir / "metrics.jsonl")] == [1, 2, 3]
    assert outcomes[2] == ""
    # Each run has deleted its own older ones, and nothing of the other run, from which the second began.
    assert names(run_dir / "checkpoints") == ["step_00000002", "step_00000003"]
    assert names(other / "checkpoints") == ["step_00000003"]
    assert "1 rank(s), 2 frame(s) each per micro-batch, steps 1 on" in output


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_lives(shards, tmp_path):
    import fcntl

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with (run_dir / ".lock").open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        outcomes, _ = run_all(shards, [f"run.dir={run_dir}", "train.num_steps=1"])
    assert outcomes[0].startswith(f"RunError: run.dir {run_dir}: another run is in it")
    assert not (run_dir / "metrics.jsonl").exists()


def test_what_teaches_nothing_ends_the_run(shards, tmp_path):
    outcomes, _ = run_all(
        shards,
        [f"run.dir={tmp_path}/a", "train.num_steps=2", "data.max_depth=0.01"],
        [f"run.dir={tmp_path}/b", "train.num_steps=9", "train.learning_rate=1e30"],
    )
    assert outcomes[0].startswith("RunError: step 1: no frame of the batch has a point that the image sees")
    assert "RunError: step" in outcomes[1]
    assert "the loss is" in outcomes[1]
    for name in "ab":
        for line in lines(tmp_path / name / "metrics.jsonl"):
            assert line["loss"] == line["loss"], "no NaN is logged"


def test_validation_is_logged_once_per_step_also_when_a_run_begins_again(shards, tmp_path):
    base = [f"data.validation_shards=[{shards}]", "data.image_size=[480, 640]", "data.pixel_stride=2"]
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "validation.jsonl").write_text('{"step": 0, "retrieval_e": 0.5}\n')  # of a run killed before step 1
    outcomes, _ = run_all(shards, [*base, f"run.dir={run_dir}", "train.num_steps=3", "train.validate_every=2"])
    assert outcomes == [""]
    scores = lines(run_dir / "validation.jsonl")
    assert [line["step"] for line in scores] == [0, 2, 3]
    for line in scores:
        assert line["frames_e"] == 4
        assert 0 <= line["retrieval_e"] <= 1
        assert 0 <= line["retrieval_d"] <= 1


@pytest.mark.parametrize("stage", [0, 1])
def test_micro_batches_and_stages_log_a_gradient_norm(shards, tmp_path, stage):
    outcomes, _ = run_all(
        shards,
        [f"run.dir={tmp_path}/run", "train.num_steps=2", "train.grad_accum_steps=2", f"train.zero_stage={stage}"],
    )
    assert outcomes == [""]
    steps = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["gradient_norm"] > 0.01 for line in steps)
    assert all(line["samples_skipped"] == 0 for line in steps)
