"""A training whose loaders are killed and stopped goes on by itself, with the same bits."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from forks import Fork, forks, run_python
from small_model import SMALL

from shards.packing.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.usefixtures("forked_python")]

NUM_STEPS = 120  # some 50 pass before the last fault
DEADLINE = 8  # seconds


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> str:
    folder = str(tmp_path_factory.mktemp("tum") / "shards")
    pack("tum", tum_sample, folder)
    return folder


def command(shards: str, run_dir: Path, *overrides: str) -> list[str]:
    return [
        *("-m", "commands.main", "pretrain", "configs/smoke.yaml", *SMALL, f"data.shards=[{shards}]"),
        *(f"run.dir={run_dir}", f"train.num_steps={NUM_STEPS}", "train.warmup_steps=2", "train.checkpoint_every=60"),
        *(f"train.step_timeout={DEADLINE}", *overrides),
    ]


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def wait_for(process: Fork, condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, f"ended before {what}"
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def loaders_of(pid: int) -> set[psutil.Process]:
    return {child for child in psutil.Process(pid).children() if child.name() == "pt_data_worker"}


def num_steps(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_stopped_loaders_are_replaced_and_change_no_bit(shards: str, tmp_path: Path) -> None:
    run_dir, output = tmp_path / "run", tmp_path / "said.txt"
    process = forks().start(command(shards, run_dir, "data.num_workers=2"), output)
    gone: set[psutil.Process] = set()
    for sign in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
        before = frozenset(gone)
        wait_for(process, lambda before=before: len(loaders_of(process.pid) - before) == 2, "two loaders")
        gone |= (now := loaders_of(process.pid) - before)
        reached = num_steps(run_dir)
        wait_for(process, lambda reached=reached: num_steps(run_dir) > reached + 4, "steps")
        assert psutil.Process(process.pid).name() == "t4p-rank"
        os.kill(next(iter(now)).pid, sign)
        struck, at = time.monotonic(), num_steps(run_dir)
        wait_for(process, lambda at=at: num_steps(run_dir) > at + 10, f"steps after signal {sign}")
        assert time.monotonic() - struck < DEADLINE + 60
    assert process.wait(240) == 0, output.read_text()
    said = output.read_text()
    assert said.count("was killed (signal 9; the system does that where memory runs out); other loaders take") == 2
    assert f"nothing came from the loader processes for {DEADLINE / 2:.0f} s" in said
    assert "is stopped" in said
    assert run_python(command(shards, tmp_path / "whole"), timeout=300).returncode == 0
    assert losses(run_dir) == losses(tmp_path / "whole")
