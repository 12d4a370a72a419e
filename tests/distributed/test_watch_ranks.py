"""Nothing hangs: real ranks of which one is stopped end with words and stacks; slow ones that get on are left alone."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from rank_processes import Ranks, start_ranks

pytestmark = [pytest.mark.slow, pytest.mark.kill, pytest.mark.usefixtures("forked_python")]

DEADLINE = 2.0  # seconds
SLOW = 3 * DEADLINE
NUM_RANKS = 3


def main(folder: Path) -> None:
    """One rank: a first step, a validation and a save that take three deadlines each; then steps until told to end."""
    import torch

    from t4p.distributed import all_reduce_sum, barrier, rank
    from t4p.heartbeat import beat, beating_while_files_move, tell_first_step
    from t4p.train.engine import start_process_group, stop_process_group
    from t4p.train.watch import collective_timeout, ranks_have_met, watching

    with watching(DEADLINE):
        start_process_group(collective_timeout(DEADLINE))
        ranks_have_met()
        if "--healthy" in sys.argv:
            time.sleep(SLOW)  # a first step: kernels are compiled, and nothing says so
        tell_first_step()
        if "--healthy" in sys.argv:
            for number in range(20 if rank() == 1 else 0):  # the others have fewer frames, and wait
                beat(f"frame {number}")
                time.sleep(SLOW / 20)
            barrier()
            if rank() == 0:
                with beating_while_files_move("a save"), (folder / "file").open("wb") as file:
                    for _ in range(60):
                        file.write(bytes(10**6))
                        time.sleep(SLOW / 60)
            barrier()
        else:
            for step in range(10_000):
                beat(f"step {step}")
                all_reduce_sum(torch.ones(1))
                (folder / f"steps-{rank()}").write_text(str(step))
                time.sleep(0.01)
    stop_process_group()


def start(folder: Path, *arguments: str):
    return start_ranks([sys.executable, __file__, str(folder), *arguments], NUM_RANKS, folder / "logs")


def stop_one(ranks: Ranks, folder: Path, stopped: int) -> float:
    """SIGSTOP to a rank that works; seconds until the others have ended."""
    begun = time.monotonic()
    while not all((folder / f"steps-{rank}").exists() for rank in range(NUM_RANKS)):
        assert time.monotonic() < begun + 240, ranks.said()
        time.sleep(0.05)
    for process in ranks.processes:
        listening = [each for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"]
        assert {each.laddr.ip for each in listening} == {"127.0.0.1"}, "ranks on one machine are reached from it alone"
    os.kill(ranks.processes[stopped].pid, signal.SIGSTOP)
    begun = time.monotonic()
    others = [process for rank, process in enumerate(ranks.processes) if rank != stopped]
    statuses = [process.wait(60) for process in others]
    assert all(statuses), ranks.said()
    return time.monotonic() - begun


@pytest.mark.parametrize("stopped", [0, 2])
def test_a_stopped_rank_ends_the_others_who_call_it_silent(tmp_path: Path, stopped: int) -> None:
    with start(tmp_path) as ranks:
        seconds = stop_one(ranks, tmp_path, stopped)
        said = ranks.said()
    assert seconds < 60
    assert f"; rank {stopped} gives no sign of life: stopped" in said
    assert "hung at step" in said
    assert "for 2 s (train.step_timeout)" in said
    assert "all_reduce_sum" in said, "the stack tells what was waited for"
    assert "---- thread MainThread" in said
    assert f"rank {stopped}: hung" not in said


def test_ranks_that_are_slow_and_get_on_are_left_alone(tmp_path: Path) -> None:
    with start(tmp_path, "--healthy") as ranks:
        ranks.wait(240)
        assert "hung" not in ranks.said()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
