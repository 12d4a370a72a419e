"""Does pre-training pay for every task? Few labelled rooms and all of them, from both starts, on rooms never seen.

Rooms are three series: training (seed 1), of which some are labelled, others for every seed, validation (2) and test
(3), as whole scenes, and the test rooms with smaller furniture than any room of training has; pre-training sees frames
of the training rooms. Every task is fine-tuned from random weights and from the pre-training of its seed, and the
pre-training alone is scored zero-shot. From scratch the grid of schedules is searched on the validation rooms with seed
0; the best of it counts for both starts, for every number of rooms. `--ablations` goes on with pre-trainings without a
part each, of seed 0, on detection, and with instances by other masks and groups.

A job is a few calls of `t4p`. What results/transfer.jsonl holds by the hash of a job's description is not computed
again, so the benchmark can be run in pieces: `--minutes 30` begins no job later than that. The run folders lie in
--out, and a pre-training whose file is gone is computed again when a job needs it.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from record import REPOSITORY, commit, record
from t4p_command import t4p

from t4p.config.files import resolve

RESULTS = REPOSITORY / "benchmarks" / "results" / "transfer.jsonl"
PRETRAIN_FILES = ("configs/pretrain/rooms.yaml",)
FILES = {
    "semantic": ("configs/finetune/rooms.yaml",),
    "instance": ("configs/finetune/rooms.yaml", "configs/finetune/rooms_instance.yaml"),
    "detection": ("configs/finetune/rooms.yaml", "configs/finetune/rooms_detection.yaml"),
}
CHOSEN_BY = {"semantic": "miou", "instance": "ap50", "detection": "ap25"}
# Keys beside those of the files: of a task's fine-tuning.
KEYS = {
    "semantic": ("train.global_batch_size=1",),
    "instance": ("train.global_batch_size=1", "model.masks=votes"),
    "detection": ("train.global_batch_size=1",),
}
# What a pre-training goes without; each is fine-tuned for ABLATED.
ABLATED = "detection"
ABLATIONS = {
    "without_l_e": ("loss.weight_e=0",),
    "without_l_d": ("loss.weight_d=0",),
    "without_text_queries": ("model.text_query.beta=0",),
    "pairs_by_8": ("loss.num_pairs_e=48", "loss.num_pairs_d=48"),
}
# Another fine-tuning of the same pre-training, by task.
VARIANTS = {
    "without_aux": (ABLATED, ("loss.weight_aux=0",)),
    "queries_own": ("instance", ("model.masks=queries", "model.groups=own")),
    "queries_given": ("instance", ("model.masks=queries", "model.groups=given")),
    "queries_none": ("instance", ("model.masks=queries", "model.groups=none")),
}
SERIES = {  # of rooms: what `t4p shards pack` makes them from
    "validation": "seed=2,rooms=12",
    "test": "seed=3,rooms=12",
    "resized": "seed=3,rooms=12,furniture=75",
}
STARTS = ("scratch", "pretrained")
NUM_ROOMS = 80  # of the training series


@dataclass(frozen=True)
class Schedule:
    """Of a fine-tuning."""

    steps: int
    learning_rate: float
    warmup_steps: int


GRID = {
    "semantic": (Schedule(200, 3e-3, 10), Schedule(200, 1e-2, 40)),
    "instance": (Schedule(200, 3e-3, 10), Schedule(200, 1e-2, 40)),
    "detection": (Schedule(200, 3e-3, 10), Schedule(200, 1e-2, 40)),
}


@dataclass(frozen=True)
class Job:
    """One pre-training (task `pretrain`), one fine-tuning with its scores, or those of a pre-training alone.

    Attributes:
        rooms: labelled rooms; 0 without a fine-tuning.
        start: of STARTS, or zero_shot.
        steps_before: of the pre-training that it begins with; 0 from scratch.
        keys: beside those of the files.
        keys_before: likewise, of the pre-training that it begins with.
    """

    task: str
    seed: int
    rooms: int
    start: str
    schedule: Schedule
    steps_before: int
    keys: tuple[str, ...] = ()
    keys_before: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What tells it apart: the hash of all of it, and of every key of its files that is not as by default."""
        command, files = ("finetune", FILES[self.task]) if self.task in FILES else ("pretrain", PRETRAIN_FILES)
        keys = resolve(command, [REPOSITORY / file for file in files]).config.model_dump(
            mode="json", exclude_defaults=True
        )
        own = {name: value for name, value in asdict(self).items() if value != ()}
        return hashlib.sha256(json.dumps([own, keys], sort_keys=True).encode()).hexdigest()[:16]


def main(
    out: Annotated[Path, typer.Option(help="Folder of shards and run folders.")] = Path("runs/bench_transfer"),
    tasks: Annotated[str, typer.Option(help="Of semantic, instance, detection, with commas.")] = "instance,detection",
    rooms: Annotated[str, typer.Option(help="Numbers of labelled rooms, with commas.")] = "4,80",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=2, help="Of a pre-training.")] = 1000,
    ablations: Annotated[bool, typer.Option(help="After all of that, what each part gives.")] = False,
    minutes: Annotated[float, typer.Option(help="After which no job begins.")] = 1e9,
    brief: Annotated[bool, typer.Option(help="Two steps and four rooms of everything: does it run?")] = False,
) -> None:
    end = time.monotonic() + 60 * minutes
    bench = Bench(out, steps, brief)
    asked = [(task, int(number)) for task in tasks.split(",") for number in rooms.split(",")]
    bench.pack()
    jobs = bench.jobs(asked, seeds)
    for job in chain(jobs, bench.ablations()) if ablations else jobs:
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
        series = {"frames": ("synthetic", f"seed=1,rooms={NUM_ROOMS}")}
        series |= {name: ("synthetic-scenes", text) for name, text in SERIES.items()}
        for name, (kind, text) in series.items():
            text = re.sub("rooms=[0-9]+", "rooms=2", text) if self.brief else text
            if not (self.shards(name) / "manifest.json").exists():
                t4p("shards", "pack", kind, text, str(self.shards(name)))

    def shards(self, name: str) -> Path:
        return self.out / "shards" / name

    def jobs(self, asked: list[tuple[str, int]], seeds: int) -> Iterator[Job]:
        """In the order of their worth: what chooses a schedule first, then seed after seed."""
        for seed in range(seeds):
            yield self.pretraining(seed)
            yield from (self.zero_shot(task, seed) for task in dict(asked) if task != "detection")
            for task, rooms in asked:
                grid = GRID[task] if seed == 0 else (self.chosen(task, rooms),)
                yield from (self.finetuning(task, seed, rooms, "scratch", schedule) for schedule in grid)
                yield self.finetuning(task, seed, rooms, "pretrained", self.chosen(task, rooms))

    def ablations(self, rooms: int = 4) -> Iterator[Job]:
        """Of seed 0; the control is the fine-tuning that begins with the whole pre-training."""
        control = self.finetuning(ABLATED, 0, rooms, "pretrained", self.chosen(ABLATED, rooms))
        for keys in ABLATIONS.values():
            yield replace(self.pretraining(0), keys=keys)
            network = tuple(key for key in keys if key.startswith("model."))
            yield replace(control, keys=(*control.keys, *network), keys_before=keys)
        for task, keys in VARIANTS.values():
            whole = self.finetuning(task, 0, rooms, "pretrained", self.chosen(task, rooms))
            yield replace(whole, keys=(*whole.keys, *keys))

    def pretraining(self, seed: int) -> Job:
        return Job("pretrain", seed, 0, "scratch", Schedule(self.steps, 4e-3, max(1, self.steps // 20)), 0)

    def zero_shot(self, task: str, seed: int) -> Job:
        return Job(task, seed, 0, "zero_shot", Schedule(0, 0.0, 0), self.steps)

    def finetuning(self, task: str, seed: int, rooms: int, start: str, schedule: Schedule) -> Job:
        if self.brief:
            schedule = Schedule(2, schedule.learning_rate, 1)
        return Job(task, seed, rooms, start, schedule, self.steps if start == "pretrained" else 0, KEYS[task])

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
            *job.keys,
        ]
        row: dict[str, Any] = {}
        if job.task == "pretrain":
            t4p("pretrain", *PRETRAIN_FILES, f"data.shards=[{self.shards('frames')}]", *common)
            t4p("checkpoint", "export", str(folder), str(folder / "network.safetensors"), "--force")
        elif job.start == "zero_shot":
            row = self._scores(self._start(job), ["model.finds=masks"] if job.task == "instance" else [])
        else:
            labelled = self._labelled(job.rooms, job.seed)
            start = [f"model.pretrained={self._start(job)}"] if job.start == "pretrained" else []
            t4p("finetune", *FILES[job.task], f"data.shards=[{labelled}]", *common, *start)
            t4p("checkpoint", "export", str(folder), str(folder / "network.safetensors"), "--force")
            row = self._scores(folder / "network.safetensors", [])
        stamp = {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        row = {"name": job.name, **asdict(job), **row, "seconds": round(time.monotonic() - begun), **stamp}
        self.found[job.name] = row
        if not self.brief:
            with RESULTS.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        print(json.dumps(row))

    def _scores(self, exported: Path, keys: list[str]) -> dict[str, Any]:
        """The means of an export's scores on every series of rooms."""
        row: dict[str, Any] = {}
        for split in SERIES:
            said = t4p(
                *("evaluate", f"model.exported={exported}", *keys),
                *(f"data.shards=[{self.shards(split)}]", "data.ignored_labels=['*']", "--json"),
            )
            scores = json.loads(said)
            row[split] = scores["mean"] if "mean" in scores else {"miou": scores["miou"]}
        return row

    def _start(self, job: Job) -> Path:
        """The export of the pre-training that a job begins with, computed again where its file is gone."""
        before = replace(self.pretraining(job.seed), keys=job.keys_before)
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
            t4p("shards", "pack", "synthetic-scenes", f"seed=1,first={first},rooms={rooms}", str(place))
        return place

    def tell(self, asked: list[tuple[str, int]], seeds: int) -> None:
        """What is known: means over seeds, differences with their least and most; results/transfer_means.jsonl."""
        figures: dict[str, float] = {}
        rows = []
        for task, rooms in asked:
            pairs = []
            for seed in range(seeds):
                jobs = (self.finetuning(task, seed, rooms, start, self.chosen(task, rooms)) for start in STARTS)
                known = [self.found[job.name] for job in jobs if job.name in self.found]
                if len(known) == len(STARTS):
                    pairs.append(known)
                    rows += known
            for split, name in product(("test", "resized"), pairs[0][0]["test"] if pairs else ()):
                scores = [[row[split][name] or 0.0 for row in pair] for pair in pairs]
                scratch, pretrained = (fmean(column) for column in zip(*scores, strict=True))
                gains = [100 * (after - before) for before, after in scores]
                of = f"{task}_{rooms}_rooms_{split}_{name}"
                print(
                    f"{of:40} scratch {scratch:.3f} pre-trained {pretrained:.3f}, "
                    f"{fmean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f}, {len(gains)} seeds)"
                )
                figures |= {f"{of}_scratch": scratch, f"{of}_pretrained": pretrained}
        alone = [*(self.zero_shot(task, seed) for task in dict(asked) for seed in range(seeds)), *self.ablations()]
        for job in (job for job in alone if job.name in self.found and job.task != "pretrain"):
            row = self.found[job.name]
            without = " ".join((*job.keys_before, *job.keys))
            print(f"{job.task} {job.start} seed {job.seed} {without}: test {row['test']} resized {row['resized']}")
            rows.append(row)
        if figures and not self.brief:
            record("transfer_means", self.steps, figures, rows, ("torch", "deepspeed"))


if __name__ == "__main__":
    typer.run(main)
