"""`t4p launch pretrain` as a user types it: real frames, real Ray, the real model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_model import SMALL

from shards.packing.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kill, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 420  # seconds; a launch takes about 12 on two idle cores
NUM_STEPS = 120  # of some 40 ms: enough to be stopped in the middle


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> str:
    packed = str(tmp_path_factory.mktemp("launch") / "shards")
    pack("tum", tum_sample, packed)
    return packed


def command(shards: str, run_dir: Path, *arguments: str) -> list[str]:
    overrides = [*SMALL, f"run.dir={run_dir}", f"data.shards=[{shards}]"]
    return [sys.executable, "-m", "commands.main", "launch", "pretrain", "configs/smoke.yaml", *overrides, *arguments]


def launch(arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=PATIENCE)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def logged(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_stopped_by_ctrl_c_and_launched_again_it_goes_on(shards: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = command(shards, run_dir, f"train.num_steps={NUM_STEPS}", "train.checkpoint_every=10")
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
    assert len(logged(run_dir)) < NUM_STEPS, "stopped in the middle, else this proves nothing"

    done = launch(arguments)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in logged(run_dir)] == list(range(1, NUM_STEPS + 1))
    assert "resuming from" in (run_dir / "logs" / "rank-0.log").read_text()


def test_a_mistake_that_only_a_worker_can_see_ends_in_one_message(shards: str, tmp_path: Path) -> None:
    done = launch(command("/no/such/shards", tmp_path / "run", "cluster.max_restarts=3"))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("error: /no/such/shards"), "and no word of a rank, or of a restart"
    assert "restart" not in done.stdout
    assert not list((tmp_path / "run").glob("checkpoints/*"))
