"""What our loop and Ray add to a training step: CPU seconds of the worker process against a bare DeepSpeed loop.

The worker of `t4p launch pretrain` trains `configs/smoke.yaml` on real frames, without Ray and on a private Ray with
its reports, in fresh processes that take turns. The bare loop is inputs, forward, backward and step, on the same batch.

adds        What the worker computes besides those calls, over what they cost: the training thread outside of them
            (stream, sums, metrics.jsonl, TensorBoard, report), and every other thread but the process group's own.
over_bare   The whole step against the same step taken again at once, with nothing around the calls and the batch ready
            in memory. It sees caches too, and on a shared machine mostly the neighbours: the same calls differ by
            several per cent from one step to the next.

Ray's threads work by the clock (heartbeats, polls), so on a busy machine, where a step takes many times its CPU seconds
of wall time, its share grows with that factor: look at `wall` in the rows.

Not counted: the loader processes, which decode and voxelise the frames and which a bare loop needs as well; Ray's own
processes; start, checkpoint and end. A run reports to Ray every 100 steps and at its last one: here the report at the
end falls on fewer steps.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from unittest.mock import patch

import typer
from frames import pack_frames
from record import REPOSITORY, record

FRAMES_PER_STEP = 4  # all that the repository carries
WARM_UP = 4  # steps; the first ones allocate, and compile products for new shapes


class Contender(StrEnum):
    LOOP = "loop"
    RAY = "ray"


def main(
    steps: Annotated[int, typer.Option(min=1, help="Measured steps of each process.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes with and without Ray.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    measure: Annotated[str | None, typer.Option(help="Internal: be one of the processes.", hidden=True)] = None,
) -> None:
    if measure is not None:
        be_worker(json.loads(measure))
        return
    # One thread, and no spinning: otherwise the time tells who else uses the machine.
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")]),
    }
    rows = []
    with TemporaryDirectory(prefix="t4p-overhead-") as folder:
        shards = pack_frames(Path(folder))
        for repeat in range(repeats):
            for contender in Contender:
                row = run_worker(contender, shards, WARM_UP + steps, Path(folder) / f"{contender}_{repeat}")
                rows.append({"contender": contender, "repeat": repeat, **row})
                print(rows[-1], file=sys.stderr)
    report = record("overhead", steps, summarise(rows), rows, ("torch", "deepspeed", "ray", "text4point"))
    if as_json:
        print(json.dumps(report))
        return
    for name, value in report["figures"].items():
        print(f"{name:>32} {value:8.4f}")


def summarise(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over the processes of each kind; shares are of the bare calls."""
    figures = {"bare_cpu_seconds_per_step": statistics.median(row["calls"] for row in rows)}
    for contender in Contender:
        own = [row for row in rows if row["contender"] == contender]
        added = [row["training_thread"] + row["threads"] for row in own]
        figures[f"{contender}_adds"] = statistics.median(a / row["calls"] for a, row in zip(added, own, strict=True))
        figures[f"{contender}_over_bare"] = statistics.median(
            (a + row["calls"]) / row["bare"] - 1 for a, row in zip(added, own, strict=True)
        )
    return figures


def run_worker(contender: Contender, shards: str, num_steps: int, folder: Path) -> dict[str, float]:
    """CPU seconds per step of one fresh process, by what they went into."""
    folder.mkdir()
    overrides = [
        f"run.dir={folder / 'run'}",
        f"data.shards=[{shards}]",
        f"train.num_steps={num_steps}",
        f"train.global_batch_size={FRAMES_PER_STEP}",
        f"train.checkpoint_every={num_steps}",
    ]
    job = {"contender": contender, "overrides": overrides, "result": str(folder / "result.json")}
    command = [sys.executable, __file__, "--measure", json.dumps(job)]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not Path(job["result"]).exists():
        raise RuntimeError(f"{contender} ended with status {done.returncode}:\n{done.stdout}")
    return json.loads(Path(job["result"]).read_text())


def be_worker(job: dict[str, Any]) -> None:
    if job["contender"] == Contender.LOOP:
        train_both_ways(job, lambda step, last_step, metrics: None)
        return
    from launch.attempts import run_job
    from launch.worker import WorkerJob

    outcome = run_job(WorkerJob("bench_overhead:train_both_ways", job, 1), lambda: None)
    if outcome.failures or outcome.problem:
        print(outcome)


def train_both_ways(job: dict[str, Any], report: Callable[[int, int, Mapping[str, float]], None]) -> None:
    """The worker of `t4p launch pretrain`, with a bare step after each of its own."""
    from launch.training import training_worker
    from t4p.config.files import load_config
    from t4p.tasks import pretrain
    from t4p.train.engine import Engine

    clocks = Clocks(Path(job["result"]))

    def train(engine: Any, task: Any, stream: Any, config: Any, settings: Any, log: Any) -> None:
        batches = list(stream.batches(0, config.num_steps))

        def on_step(record: Any) -> None:
            settings.on_step(record)
            clocks.our_step_done()
            loss, *_ = engine.forward(*task.inputs(batches[record.step - 1]))
            engine.backward(loss)
            engine.step(record.learning_rate)
            clocks.bare_step_done(record.step, config.num_steps)

        train_our_way(engine, task, stream, config, replace(settings, on_step=on_step), log)

    train_our_way = pretrain.train
    config = load_config([REPOSITORY / "configs" / "smoke.yaml"], job["overrides"])
    with ExitStack() as patches:
        patches.enter_context(patch.object(pretrain, "train", train))
        calls = ((pretrain.PretrainTask, "inputs"), (Engine, "forward"), (Engine, "backward"), (Engine, "step"))
        for owner, name in calls:
            patches.enter_context(patch.object(owner, name, clocks.timed(getattr(owner, name))))
        training_worker(config.model_dump(mode="json"), report)


class Clocks:
    """CPU seconds since the end of the warm-up, of our steps, which alternate with bare ones."""

    def __init__(self, result: Path) -> None:
        self._result = result
        self._totals = Counter[str]()
        self._begin_step()

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted among the calls of the current step."""

        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self._calls += time.thread_time() - started

        return call

    def our_step_done(self) -> None:
        self._totals["training_thread"] += time.thread_time() - self._started - self._calls
        self._totals["calls"] += self._calls
        self._totals["wall"] += time.perf_counter() - self._wall_started
        self._totals["threads"] += seconds_of_other_threads() - self._threads
        self._calls = 0.0

    def bare_step_done(self, step: int, num_steps: int) -> None:
        """Begin to count after the warm-up; write the result after the last step."""
        self._totals["bare"] += self._calls
        if step == WARM_UP:
            self._totals.clear()
        if step == num_steps:
            counted = num_steps - WARM_UP
            self._result.write_text(json.dumps({name: total / counted for name, total in self._totals.items()}))
        self._begin_step()

    def _begin_step(self) -> None:
        self._calls = 0.0
        self._threads = seconds_of_other_threads()
        self._wall_started, self._started = time.perf_counter(), time.thread_time()


def seconds_of_other_threads() -> float:
    """CPU seconds of the threads of this process, but for the calling one and those that every process group has."""
    seconds = 0.0
    for thread in Path("/proc/self/task").iterdir():
        name = (thread / "comm").read_text()
        if thread.name != str(threading.get_native_id()) and not name.startswith(("gloo", "pt_gloo", "pt_tcpstore")):
            seconds += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return seconds


if __name__ == "__main__":
    typer.run(main)
