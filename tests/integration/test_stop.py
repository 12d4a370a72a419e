"""SIGTERM to one of two ranks: both save the same step, and who goes on from it comes to the same bits.

Every rank is a process of its own (tests/forks.py).
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from rank_processes import start_ranks
from small_model import SMALL

from shards.packing.pack import pack
from t4p.runs.checkpoint import checkpoint_name, newest_checkpoint, step_of

pytestmark = pytest.mark.usefixtures("forked_python")

NUM_STEPS = 9
# `t4p`, in which a rank sends itself a signal after a step, and validates for minutes from then on.
PROGRAM = """
import os, signal, sys, time
from commands.main import main
from t4p.stop import asked
from t4p.tasks.pretrain import PretrainTask

signals = dict(zip(sys.argv[1].split(","), sys.argv[2].split(",")))
check, validate = PretrainTask.check, PretrainTask.validate

def check_and_signal(self, record):
    check(self, record)
    name = signals.get(os.environ["RANK"])
    if record.step == 3 and name:
        os.kill(os.getpid(), getattr(signal, name))

def validate_slowly(self, module):
    time.sleep(600 if asked() else 0)
    return validate(self, module)

PretrainTask.check, PretrainTask.validate = check_and_signal, validate_slowly
sys.argv = ["t4p", *sys.argv[3:]]
main()
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, tum_sample: Path) -> Path:
    folder = tmp_path_factory.mktemp("tum") / "shards"
    pack("tum", tum_sample, str(folder))
    return folder


def command(shards: Path, run_dir: Path, *more: str, signals: tuple[str, str] = ("", "")) -> list[str]:
    """Of a rank.

    Args:
        signals: ranks, and the signals that they send themselves after step 3: both lists with commas.
    """
    return [
        *(sys.executable, "-c", PROGRAM, *signals, "pretrain", "configs/smoke.yaml", *SMALL, f"run.dir={run_dir}"),
        *(f"data.shards=[{shards}]", f"train.num_steps={NUM_STEPS}", "train.warmup_steps=2"),
        *("train.checkpoint_every=100", *more),
    ]


def lines(run_dir: Path) -> list[tuple[float, ...]]:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"], record["gradient_norm"]) for record in records]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    path = run_dir / "checkpoints" / checkpoint_name(NUM_STEPS) / "mp_rank_00_model_states.pt"
    return torch.load(path, weights_only=False)["module"]


def test_all_ranks_save_the_same_step_and_what_follows_has_the_bits_of_an_undisturbed_run(
    shards: Path, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    with start_ranks(command(shards, whole), 2, tmp_path / "logs-whole") as ranks:
        ranks.wait(300)
    with start_ranks(command(shards, stopped, signals=("1", "SIGTERM")), 2, tmp_path / "logs-stopped") as ranks:
        assert ranks.statuses(300) == [143, 143], ranks.said()
        said = (ranks.logs / "rank-0.txt").read_text()
    newest, _ = newest_checkpoint(stopped / "checkpoints")
    assert newest is not None
    assert 3 < step_of(newest) < NUM_STEPS
    assert f"stopped by SIGTERM: saved step {step_of(newest)}; the same command goes on from it" in said
    assert lines(stopped) == lines(whole)[: step_of(newest)]
    with start_ranks(command(shards, stopped), 2, tmp_path / "logs-on") as ranks:
        ranks.wait(300)
        assert f"resuming from {newest}" in ranks.said()
    assert lines(stopped) == lines(whole)
    wanted, found = weights(whole), weights(stopped)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    shutil.rmtree(tmp_path)


def test_a_rank_that_waits_for_another_one_ends_at_the_limit(shards: Path, tmp_path: Path) -> None:
    call = command(shards, tmp_path / "run", "train.save_on_stop=1", signals=("0,1", "SIGTERM,SIGSTOP"))
    with start_ranks(call, 2, tmp_path / "logs") as ranks:
        assert ranks.processes[0].wait(300) == 128 + signal.SIGTERM
        ended = time.monotonic()
        said = (ranks.logs / "rank-0.txt").read_text()
        assert ranks.processes[1].poll() is None, "stopped, and waited for"
    assert time.monotonic() - ended < 60
    assert "stopped by SIGTERM: nothing is saved yet: the same command begins again" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_validation_that_is_due_comes_after_the_save_and_cannot_cost_it(shards: Path, tmp_path: Path) -> None:
    call = command(
        shards, tmp_path / "run", "train.save_on_stop=10", "train.validate_every=2", signals=("0", "SIGTERM")
    )
    with start_ranks(call, 1, tmp_path / "logs") as ranks:
        assert ranks.processes[0].wait(300) == 128 + signal.SIGTERM
        said = ranks.said()
    assert "stopped by SIGTERM: saved step 4; the same command goes on from it" in said
