"""Workers, a raylet, the driver and a node are killed in the middle: the run ends by itself, and nothing shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from ports import free_ports
from ray_cluster import start_ray_cluster
from small_model import SMALL

from launch.processes.caretaker import processes_of
from shards.packing.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kill, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
FRAMES = ROOT / "tests" / "data" / "tum_rgbd" / "rgbd_dataset_freiburg1_rpy"
PATIENCE = 420  # seconds; an attempt takes about 12 on two idle cores
# Of some 40 ms, and the last kill comes soon after step 50: the other three quarters are for when this process gets no
# turn for seconds.
NUM_STEPS = 200
EVERY = 10  # steps between checkpoints
LOOK_EVERY = 0.005  # seconds: a checkpoint is being written for some tens of milliseconds
SEARCH_EVERY = 0.1  # seconds; going through all processes of the machine takes as long as many a step
OVERRIDES = [
    *SMALL,
    f"train.num_steps={NUM_STEPS}",
    f"train.checkpoint_every={EVERY}",
    "train.warmup_steps=2",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tum") / "shards")
    pack("tum", FRAMES, folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two bare ranks, without Ray, that nobody disturbed."""
    run_dir = tmp_path_factory.mktemp("uninterrupted")
    arguments = [sys.executable, "-m", "commands.main", "pretrain", "configs/smoke.yaml", *overrides(shards, run_dir)]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
    ranks = [
        subprocess.Popen(arguments, cwd=ROOT, env=environment() | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=PATIENCE) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return run_dir


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "COLUMNS": "200"}


def overrides(shards: str, run_dir: Path) -> list[str]:
    return [*OVERRIDES, f"data.shards=[{shards}]", f"run.dir={run_dir}"]


class Launched:
    """A launch in a process of its own, and the eyes to hit what belongs to it."""

    def __init__(self, run_dir: Path, arguments: list[str], env: dict[str, str]) -> None:
        self.run_dir = run_dir
        self._output = run_dir.with_suffix(".output")
        command = [sys.executable, "-m", "commands.main", "launch", "pretrain", "configs/smoke.yaml", "--workers", "2"]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *arguments], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
            )

    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, condition: Callable[[], bool], what: str, every: float = LOOK_EVERY) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output()}"
            assert time.monotonic() < end, f"waited {PATIENCE} s for {what}:\n{self.output()}"
            time.sleep(every)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: num_lines(self.run_dir) >= step, f"step {step}")

    def wait_for_restart(self, number: int) -> None:
        self.wait_for(lambda: f"restart {number} of" in self.output(), f"restart {number}")

    def resumed_from(self) -> list[int]:
        """The step from which each restart so far went on."""
        return [int(step) for step in re.findall(r"restart \d of \d goes on from step (\d+)", self.output())]

    def driver(self) -> psutil.Process:
        """The process that talks to Ray, as soon as there is one."""
        found: list[psutil.Process] = []

        def look() -> bool:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.NoSuchProcess):  # the driver before it, which ends meanwhile
                    if "launch.driver" in child.cmdline():
                        found.append(child)
            return bool(found)

        self.wait_for(look, "the process that talks to Ray", SEARCH_EVERY)
        return found[0]

    def workers(self, below: Path) -> list[psutil.Process]:
        """Both workers, by rank, as soon as they are there."""
        found: dict[int, psutil.Process] = {}

        def look() -> bool:
            found.update(workers_by_rank(below))
            return len(found) == 2

        self.wait_for(look, "both workers", SEARCH_EVERY)
        return [found[rank] for rank in range(2)]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def workers_by_rank(below: Path) -> dict[int, psutil.Process]:
    """The processes whose output goes to the log of a rank in a folder somewhere below the one given."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            output = Path(os.readlink(f"/proc/{process.pid}/fd/1"))
            rank = re.fullmatch(r"rank-(\d)\.log", output.name)
            if rank and below in output.parents:
                found[int(rank[1])] = process
    return found


def suspend(workers: Sequence[psutil.Process]) -> None:
    """Make workers stand still: on a quick machine they would train to the end before anybody notices a loss."""
    for worker in workers:
        worker.suspend()


def num_lines(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def is_being_written(run_dir: Path) -> bool:
    folders = (run_dir / "checkpoints").glob("step_*")
    return any(not (folder / "COMPLETE.json").exists() for folder in folders)


def assert_same_run(run_dir: Path, uninterrupted: Path) -> None:
    """Every logged loss and every saved parameter and buffer, bit for bit; one line per step."""
    logged, wanted = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run_dir, uninterrupted)
    )
    assert [line["step"] for line in logged] == list(range(1, NUM_STEPS + 1))
    for name in ("loss", "loss_e", "loss_d", "gradient_norm", "samples_seen"):
        assert [line[name] for line in logged] == [line[name] for line in wanted], name
    saved, saved_wanted = (
        torch.load(folder / "checkpoints" / f"step_{NUM_STEPS:08d}" / "mp_rank_00_model_states.pt", weights_only=False)[
            "module"
        ]
        for folder in (run_dir, uninterrupted)
    )
    assert saved.keys() == saved_wanted.keys()
    assert all(torch.equal(saved[name], saved_wanted[name]) for name in saved)


def test_a_run_survives_the_loss_of_a_worker_of_ray_and_of_the_driver(
    shards: str, uninterrupted: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    # The run begins with `never`: what was lost resumes from the checkpoints of this very launch all the same.
    launched = Launched(run_dir, [*overrides(shards, run_dir), "train.resume=never"], environment())
    try:
        folder = Path(launched.driver().cmdline()[-1])
        _, worker = launched.workers(folder)
        launched.wait_for_step(EVERY + 1)
        launched.wait_for(lambda: is_being_written(run_dir), "a checkpoint that is being written")
        worker.kill()
        launched.wait_for_restart(1)

        folder = Path(launched.driver().cmdline()[-1])
        launched.wait_for(lambda: (folder / "connected").exists(), "Ray")
        (raylet,) = [process for process in processes_of(folder) if process.name() == "raylet"]
        workers = launched.workers(folder)
        launched.wait_for_step(launched.resumed_from()[-1] + 2 * EVERY + 1)  # beyond what is logged already
        suspend(workers)
        raylet.kill()
        launched.wait_for_restart(2)

        driver = launched.driver()
        folder = Path(driver.cmdline()[-1])
        workers = launched.workers(folder)
        launched.wait_for_step(launched.resumed_from()[-1] + 2 * EVERY + 1)
        suspend(workers)
        driver.kill()
        launched.wait_for_restart(3)

        assert launched.process.wait(timeout=PATIENCE) == 0, launched.output()
    finally:
        launched.end()
    assert_same_run(run_dir, uninterrupted)
    told = [line for line in launched.output().splitlines() if "restart" in line]
    assert len(told) == 3, told
    assert "its process was killed" in told[0] or "lost the connection" in told[0]
    # The driver, Ray's controller or a rank may be the first to see that the raylet is gone.
    of_raylet = ("a process of Ray's own is gone", "the process that runs Ray", "Ray's own process", "was killed")
    assert any(words in told[1] for words in of_raylet)
    assert "was killed by signal 9" in told[2]
    first, second, third = launched.resumed_from()
    assert EVERY <= first < second < third < NUM_STEPS, "each attempt gets on, and none to the end"
    log = (run_dir / "logs" / "rank-0.log").read_text()
    assert log.count("resuming from") == 3, "one log over all attempts"
    assert not folder.exists()
    assert processes_of(folder) == []
    last = run_dir / "checkpoints" / f"step_{NUM_STEPS:08d}"
    assert len(list(last.glob("zero_pp_rank_*_optim_states.pt"))) == 2, "one part per rank"
    assert sorted(kept.name for kept in (run_dir / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
    told_of = re.findall(r"^=+ attempt (\d) of launch", (run_dir / "error.txt").read_text(), re.MULTILINE)
    assert set(told_of) == {"1", "2", "3"}, "what was lost can be looked up"


def test_on_a_cluster_a_lost_node_is_replaced_by_another(shards: str, uninterrupted: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start_ray_cluster([1, 1]) as cluster:
        env = environment() | cluster.environ()
        launched = Launched(run_dir, [*overrides(shards, run_dir), "--address", "auto"], env)
        wide_dir = tmp_path / "wide"
        wide = Launched(wide_dir, [*overrides(shards, wide_dir), "cluster.cpus_per_worker=2", "--address", "auto"], env)
        try:
            workers = launched.workers(run_dir)
            launched.wait_for_step(2 * EVERY)
            nodes = {worker.ppid() for worker in workers}
            assert len(nodes) == 2, "spread over both nodes"
            raylet = psutil.Process(workers[1].ppid())
            suspend(workers[1:])
            raylet.kill()
            cluster.add_nodes([1])
            launched.wait_for_restart(1)
            with suppress(psutil.NoSuchProcess):  # left without a node, and suspended, it may not end by itself
                workers[1].kill()
            assert launched.process.wait(timeout=PATIENCE) == 0, launched.output()
            assert wide.process.wait(timeout=PATIENCE) == 1
            assert "places for 0 of 2 workers, each with 2 CPU(s)" in wide.output()
        finally:
            launched.end()
            wide.end()
    assert_same_run(run_dir, uninterrupted)
    assert sorted(log.name for log in (run_dir / "logs").iterdir()) == ["rank-0.log", "rank-1.log"]
