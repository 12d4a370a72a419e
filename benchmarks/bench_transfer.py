"""Does pre-training pay for every task? Few labelled rooms and all of them, from both starts, on rooms never seen.

Rooms are three series: training (seed 1), of which some are labelled, others for every seed, validation (2) and test
(3), as whole scenes; pre-training sees frames of the training rooms. Every task is fine-tuned from random weights and
from the pre-training of its seed. From scratch the grid of schedules is searched on the validation rooms with seed 0;
the best of it counts for both starts, for every number of rooms.

A job is a few calls of `t4p`. What results/transfer.jsonl holds by the hash of a job's description is not computed
again, so the benchmark can be run in pieces: `--minutes 30` begins no job later than that. The run folders lie in
--out, and a pre-training whose file is gone is computed again when a job needs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from record import REPOSITORY, commit, record

from t4p.config.files import resolve

RESULTS = REPOSITORY / "benchmarks" / "results" / "transfer.jsonl"
PRETRAIN_FILES = ("configs/pretrain/rooms.yaml",)
FILES = {
    "semantic": ("configs/finetune/rooms.yaml",),
    "instance": ("configs/finetune/rooms.yaml", "configs/finetune/rooms_instance.yaml"),
    "detection": ("configs/finetune/rooms.yaml", "configs/finetune/rooms_detection.yaml"),
}
CHOSEN_BY = {"semantic": "miou", "instance": "ap50", "detection": "ap25"}
STARTS = ("scratch", "pretrained")
NUM_ROOMS = 80  # of the training series


@dataclass(frozen=True)
class Schedule:
    """Of a fine-tuning."""

    steps: int
    learning_rate: float
    warmup_steps: int


GRID = {
    "semantic": (Schedule(400, 3e-3, 10), Schedule(400, 1.2e-2, 100)),
    "instance": (Schedule(600, 1.5e-3, 20), Schedule(600, 4e-3, 50)),
    "detection": (Schedule(400, 3e-3, 10), Schedule(400, 8e-3, 50)),
}


@dataclass(frozen=True)
class Job:
    """One pre-training (task `pretrain`), or one fine-tuning with its scores.

    Attributes:
        rooms: labelled rooms; 0 for a pre-training.
        start: of STARTS.
        steps_before: of the pre-training that it begins with; 0 from scratch.
    """

    task: str
    seed: int
    rooms: int
    start: str
    schedule: Schedule
    steps_before: int

    @property
    def name(self) -> str:
        """What tells it apart: the hash of all of it, and of every key of its files that is not as by default."""
        command, files = ("finetune", FILES[self.task]) if self.task in FILES else ("pretrain", PRETRAIN_FILES)
        keys = resolve(command, [REPOSITORY / file for file in files]).config.model_dump(
            mode="json", exclude_defaults=True
        )
        return hashlib.sha256(json.dumps([asdict(self), keys], sort_keys=True).encode()).hexdigest()[:16]


def main(
    out: Annotated[Path, typer.Option(help="Folder of shards and run folders.")] = Path("runs/bench_transfer"),
    tasks: Annotated[str, typer.Option(help="Of semantic, instance, detection, with commas.")] = "instance,detection",
    rooms: Annotated[str, typer.Option(help="Numbers of labelled rooms, with commas.")] = "4,80",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=2, help="Of a pre-training.")] = 1000,
    minutes: Annotated[float, typer.Option(help="After which no job begins.")] = 1e9,
    brief: Annotated[bool, typer.Option(help="Two steps and four rooms of everything: does it run?")] = False,
) -> None:
    end = time.monotonic() + 60 * minutes
    bench = Bench(out, steps, brief)
    asked = [(task, int(number)) for task in tasks.split(",") for number in rooms.split(",")]
    bench.pack()
    for job in bench.jobs(asked, seeds):
        if job.name in bench.found:
            continue
        if time.monotonic() > end:
            print("the time is over; run again to go on")
            break
        bench.run(job)
    bench.tell(asked, seeds)


class Bench:
    """What is known, and how more of it is found."""

    def __init__(self, out: Path, steps: int, brief: bool) -> None:
        self.out, self.steps, self.brief = out.resolve(), 2 if brief else steps, brief
        lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() and not brief else []
        self.found: dict[str, dict[str, Any]] = {row["name"]: row for row in map(json.loads, lines)}

    def pack(self) -> None:
        """The datasets that are not there yet."""
        few = self.brief
        series = {
            "frames": ("synthetic", f"seed=1,rooms={2 if few else NUM_ROOMS}"),
            "validation": ("synthetic-scenes", f"seed=2,rooms={1 if few else 12}"),
            "test": ("synthetic-scenes", f"seed=3,rooms={1 if few else 12}"),
        }
        for name, (kind, text) in series.items():
            if not (self.shards(name) / "manifest.json").exists():
                self._t4p("shards", "pack", kind, text, str(self.shards(name)))

    def shards(self, name: str) -> Path:
        return self.out / "shards" / name

    def jobs(self, asked: list[tuple[str, int]], seeds: int) -> Iterator[Job]:
        """In the order of their worth: what chooses a schedule first, then seed after seed."""
        for seed in range(seeds):
            yield self.pretraining(seed)
            for task, rooms in asked:
                grid = GRID[task] if seed == 0 else (self.chosen(task, rooms),)
                yield from (self.finetuning(task, seed, rooms, "scratch", schedule) for schedule in grid)
                yield self.finetuning(task, seed, rooms, "pretrained", self.chosen(task, rooms))

    def pretraining(self, seed: int) -> Job:
        return Job("pretrain", seed, 0, "scratch", Schedule(self.steps, 4e-3, max(1, self.steps // 20)), 0)

    def finetuning(self, task: str, seed: int, rooms: int, start: str, schedule: Schedule) -> Job:
        if self.brief:
            schedule = Schedule(2, schedule.learning_rate, 1)
        return Job(task, seed, rooms, start, schedule, self.steps if start == "pretrained" else 0)

    def chosen(self, task: str, rooms: int) -> Schedule:
        """The schedule that is best for scratch on the validation rooms, seed 0; the first before that is known."""

        def score(schedule: Schedule) -> float:
            row = self.found.get(self.finetuning(task, 0, rooms, "scratch", schedule).name)
            return -1.0 if row is None else row["validation"][CHOSEN_BY[task]]

        return max(GRID[task], key=score)

    def run(self, job: Job) -> None:
        """Compute one job, and keep what it found."""
        begun, folder = time.monotonic(), self.out / "runs" / job.name
        common = [
            *(f"run.dir={folder}", f"run.seed={job.seed}", f"train.num_steps={job.schedule.steps}"),
            *(f"train.checkpoint_every={job.schedule.steps}", f"train.warmup_steps={job.schedule.warmup_steps}"),
            *(f"train.learning_rate={job.schedule.learning_rate}", "data.num_workers=1", "data.frame=world"),
        ]
        row: dict[str, Any] = {}
        if job.task == "pretrain":
            self._t4p("pretrain", *PRETRAIN_FILES, f"data.shards=[{self.shards('frames')}]", *common)
            self._t4p("checkpoint", "export", str(folder), str(folder / "network.safetensors"), "--force")
        else:
            labelled = self._labelled(job.rooms, job.seed)
            start = [f"model.pretrained={self._start(job)}"] if job.start == "pretrained" else []
            self._t4p("finetune", *FILES[job.task], f"data.shards=[{labelled}]", *common, *start)
            self._t4p("checkpoint", "export", str(folder), str(folder / "network.safetensors"), "--force")
            for split in ("validation", "test"):
                said = self._t4p(
                    *("evaluate", f"model.exported={folder / 'network.safetensors'}"),
                    *(f"data.shards=[{self.shards(split)}]", "data.ignored_labels=['*']", "--json"),
                )
                scores = json.loads(said)
                row[split] = scores["mean"] if "mean" in scores else {"miou": scores["miou"]}
        stamp = {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        row = {"name": job.name, **asdict(job), **row, "seconds": round(time.monotonic() - begun), **stamp}
        self.found[job.name] = row
        if not self.brief:
            with RESULTS.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        print(json.dumps(row))

    def _start(self, job: Job) -> Path:
        """The export of the pre-training of a job's seed, computed again where its file is gone."""
        before = self.pretraining(job.seed)
        exported = self.out / "runs" / before.name / "network.safetensors"
        if not exported.exists():
            self.run(before)
        return exported

    def _labelled(self, rooms: int, seed: int) -> Path:
        """A dataset of labelled rooms of the training series, others for every seed as far as there are."""
        rooms = min(rooms, 4) if self.brief else rooms
        first = rooms * seed % NUM_ROOMS if rooms < NUM_ROOMS else 0
        place = self.shards(f"labelled_{rooms}_from_{first}")
        if not (place / "manifest.json").exists():
            self._t4p("shards", "pack", "synthetic-scenes", f"seed=1,first={first},rooms={rooms}", str(place))
        return place

    def tell(self, asked: list[tuple[str, int]], seeds: int) -> None:
        """Means over seeds on the test rooms, of whatever is known of both starts; results/transfer_means.jsonl."""
        figures: dict[str, float] = {}
        rows = []
        for task, rooms in asked:
            pairs = []
            for seed in range(seeds):
                jobs = (self.finetuning(task, seed, rooms, start, self.chosen(task, rooms)) for start in STARTS)
                known = [self.found[job.name] for job in jobs if job.name in self.found]
                if len(known) == len(STARTS):
                    pairs.append([row["test"] for row in known])
                    rows += known
            for name in pairs[0][0] if pairs else ():
                scratch, pretrained = (fmean(pair[place][name] or 0.0 for pair in pairs) for place in (0, 1))
                told = f"{task:10} {rooms:3} rooms, {len(pairs)} seeds, {name:6}"
                print(f"{told} scratch {scratch:.3f} pre-trained {pretrained:.3f} {100 * (pretrained - scratch):+.1f}")
                figures |= {
                    f"{task}_{rooms}_rooms_{name}_{start}": value
                    for start, value in zip(STARTS, (scratch, pretrained), strict=True)
                }
        if figures and not self.brief:
            record("transfer_means", self.steps, figures, rows, ("torch", "deepspeed"))

    def _t4p(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "commands.main", *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"t4p {' '.join(arguments)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout


if __name__ == "__main__":
    typer.run(main)
