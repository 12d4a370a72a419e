"""A task that is one file (tests/planes_task.py) and one row trains, resumes, exports and is scored by command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Told, call_in_turn
from small_model import TINY_NETWORK

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / "tests" / "data" / "older"

CONFIG = """
task: planes
data: {num_workers: 0, ignored_labels: ['*'], pixel_stride: 2, frame: world}
model:
  voxel_size: 0.1
  point_features: [one, height]
  labels: [wall, floor]
  clip: {name: CLIP, pretrained: random}
train: {num_steps: 30, global_batch_size: 1, learning_rate: 0.02, checkpoint_every: 15}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "planes.yaml"
    path.write_text(CONFIG.replace("CLIP", str(OLDER / "clip.json")))
    return str(path)


def call(environ: dict[str, str], **calls: list[str]) -> dict[str, Told]:
    """What each call tells, all in one process that knows the task."""
    return dict(zip(calls, call_in_turn(list(calls.values()), environ, ["planes_task"]), strict=True))


def test_a_task_of_one_file_and_one_row_goes_the_whole_road(
    config: str, tmp_path: Path, clean_environ: dict[str, str]
) -> None:
    run_dir, exported, scenes = tmp_path / "run", tmp_path / "planes.safetensors", OLDER / "scenes"
    train = ["finetune", config, *TINY_NETWORK, f"data.shards={scenes}", f"run.dir={run_dir}"]
    evaluate = ["evaluate", f"model.exported={exported}", f"data.shards={scenes}", "data.ignored_labels=['*']"]
    told = call(clean_environ, mistaken=[*train, "loss.wait=1", "model.text_query.num_heads=3"], trained=train)
    told |= call(
        clean_environ,
        changed=[*train, "loss.weight=1", "train.num_steps=31"],
        resumed=[*train, "train.num_steps=31"],
        listed=["checkpoint", "list", str(run_dir), "--json"],
        exported=["checkpoint", "export", str(run_dir / "checkpoints" / "step_00000031"), str(exported)],
        scored=[*evaluate, "--json"],
        shown=evaluate,
    )
    assert {name: status for name, (status, _, _) in told.items() if status} == {"mistaken": 2, "changed": 1}, told
    assert "loss.wait: unknown key, did you mean 'weight'?" in told["mistaken"].output
    assert "model.text_query.num_heads: 3 does not divide 16" in told["mistaken"].output
    assert "loss.weight: 2.0 -> 1.0" in told["changed"].output
    assert [entry["step"] for entry in json.loads(told["listed"].output)["checkpoints"]] == [15, 30, 31]
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 32))
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    scores = json.loads(told["scored"].output.splitlines()[-1])
    assert scores["task"] == "planes"
    assert scores["miou"] > 0.9
    assert "Planes" in told["shown"].output


def test_without_its_row_the_task_is_unknown(config: str, tmp_path: Path, clean_environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "commands.main", "finetune", config, f"run.dir={tmp_path}"],
        cwd=ROOT,
        env=clean_environ,
        capture_output=True,
        text=True,
    )
    known = "pretrain, semantic, instance, detection"
    assert (done.returncode, done.stderr) == (2, f"error: task is planes; known: {known}\n")
