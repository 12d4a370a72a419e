"""`t4p launch pretrain` as a user types it: real frames, real Ray, the real model."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.quickstart import find_example_frames
from shards.pack import pack

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 420  # seconds; a launch takes about 25 on two idle cores


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    packed = str(tmp_path_factory.mktemp("launch") / "shards")
    pack("tum", find_example_frames(), packed)
    return packed


def command(shards: str, run_dir: Path, *arguments: str) -> list[str]:
    overrides = [f"run.dir={run_dir}", f"data.shards=[{shards}]", "data.num_workers=0"]
    return [sys.executable, "-m", "t4p.cli", "launch", "pretrain", "configs/smoke.yaml", *overrides, *arguments]


def launch(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def logged(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_two_workers_train_together(shards: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = launch(command(shards, run_dir, "train.num_steps=6", "train.checkpoint_every=6", "--workers", "2"))
    assert done.returncode == 0, done.stderr
    assert f"run folder: {run_dir}" in done.stdout
    assert [line["step"] for line in logged(run_dir)] == list(range(1, 7))
    assert all(math.isfinite(line["loss"]) for line in logged(run_dir))
    (marker,) = run_dir.glob("checkpoints/*/COMPLETE.json")
    assert len(list(marker.parent.glob("zero_pp_rank_*_optim_states.pt"))) == 2, "one part per rank"
    assert sorted(log.name for log in (run_dir / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]


def test_stopped_by_ctrl_c_and_launched_again_it_goes_on(shards: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = command(shards, run_dir, "train.num_steps=16", "train.checkpoint_every=2")
    running = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + PATIENCE
        while not list(run_dir.glob("checkpoints/*/COMPLETE.json")):
            assert running.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 130
    assert "the same command resumes" in output
    assert len(logged(run_dir)) < 16, "stopped in the middle, else this proves nothing"

    done = launch(arguments)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in logged(run_dir)] == list(range(1, 17))
    assert "resuming from" in (run_dir / "logs" / "rank-0.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (("--workers", "3"), 2, ("--workers is 3", "train.global_batch_size is 2")),
        (("data.shards=[/no/such/shards]",), 2, ("/no/such/shards",)),
        (("data.image_size=[481,640]",), 2, ("481",)),
        (("train.global_batch_size=64",), 2, ("64",)),
    ],
)
def test_a_mistake_ends_in_one_message(
    shards: str, tmp_path: Path, arguments: tuple[str, ...], status: int, wanted: tuple[str, ...]
) -> None:
    done = launch(command(shards, tmp_path / "run", *arguments))
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for text in wanted:
        assert text in done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))
