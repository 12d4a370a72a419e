"""Does it pay? The quickstart's road with three seeds: zero-shot, and few labels from both starts, on held-out rooms.

Training, validation and test rooms are three series (seeds 1, 2 and 3), the CLIP's own rooms three more (41 to 43). The
network and its settings are those of configs/{pretrain,finetune}/rooms.yaml, chosen on rooms of seed 2.

pre-training    both        L_e and L_d
                e_alone     L_e alone, as many steps
                both_brief  L_e and L_d, for as many CPU seconds as L_e alone took
fine-tuning     On 2 and on 4 labelled rooms, others for every seed, from random weights and from pre-trained ones.
                Both have the schedule of the grid with which training from scratch on as many rooms is best, by mIoU
                on the validation rooms with seed 0. From scratch the whole network trains with a linear head. From
                `both` every recipe is trained, and those that begin with the words are also scored with a share of
                the fine-tuned weights, the rest being those before. The recipe that counts (`both_2_rooms`,
                `both_4_rooms`) has the best mIoU on the validation rooms, the mean over seeds; the other
                pre-trainings take it too.

Every trained network is scored on the validation rooms, by which something may be chosen, and on the test rooms.
Every job is a process of one thread, two at a time; what --out holds of the same commit is not computed again.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

import typer
from record import REPOSITORY, commit, record

SERIES = {"training": "seed=1,rooms=80", "validation": "seed=2,rooms=24", "test": "seed=3,rooms=12"}
PRETRAININGS = ("both", "e_alone", "both_brief")
NUMS_ROOMS = (2, 4)
SCORED = ("validation", "test")
Jobs = dict[str, tuple[str, dict[str, Any]]]  # by name: kind and arguments


class Schedule(NamedTuple):
    """Of a fine-tuning."""

    steps: int
    learning_rate: float
    warmup_steps: int

    def __str__(self) -> str:
        return f"{self.steps}_{self.learning_rate:g}_{self.warmup_steps}"


# 400 steps, minutes of one core: what a user with few labels has. When the grid had five, the two that are left out
# (200 steps; 6e-3 with a warm-up of 10) were not best.
SCHEDULES = (
    Schedule(400, 3e-3, 10),
    Schedule(400, 6e-3, 100),
    Schedule(400, 1.2e-2, 100),
)
# What a fine-tuning makes of its start: as on the command line, before what every job is told.
LINEAR = "linear"
ROOMS, FEW_LABELS = "configs/finetune/rooms.yaml", "configs/finetune/few_labels.yaml"
RECIPES = {
    LINEAR: (ROOMS,),
    "words": (ROOMS, FEW_LABELS),
    "words_frozen": (ROOMS, FEW_LABELS, "model.frozen=[encoder, decoder]"),
}
SHARES = (0.3, 0.6)  # of the fine-tuned weights in an export; LOG.md has more of them


class Choice(NamedTuple):
    """What is made of a start: how it is fine-tuned, and how much of that is kept."""

    recipe: str
    share: float

    def __str__(self) -> str:
        return self.recipe if self.share == 1 else f"{self.recipe}_{self.share:g}"


CHOICES = tuple(
    Choice(recipe, share) for recipe in RECIPES for share in ((1.0,) if recipe == LINEAR else (1.0, *SHARES))
)


def main(
    out: Annotated[Path, typer.Option(help="Folder of shards, run folders and results.")] = Path(
        "runs/bench_quickstart"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    steps: Annotated[int, typer.Option(min=20, help="Of pre-training with both losses.")] = 2000,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    compare: Annotated[
        bool, typer.Option(help="L_e alone too, at equal steps and at equal time: half as long again.")
    ] = True,
    job: Annotated[str | None, typer.Option(help="Internal: be one of the processes.", hidden=True)] = None,
) -> None:
    if job is not None:
        asked = json.loads(job)
        found = JOBS[asked["kind"]](out, **asked["arguments"])
        (out / "result.tmp").write_text(json.dumps(found))
        (out / "result.tmp").rename(out / "result.json")
        return
    pack_all(out / "shards", seeds)
    bench = Bench(out)
    numbers = range(seeds)

    def pretrainings(name: str, steps: int) -> Jobs:
        return {f"{name}_{seed}": pretraining(seed, steps, with_d=name != "e_alone") for seed in numbers}

    def finetunings(start: str | None, recipes_of: Mapping[int, Iterable[str]]) -> Jobs:
        return {
            job_name(start, recipe, rooms, seed): finetuning(
                seed, rooms, schedules[rooms], start and bench.exported(f"{start}_{seed}"), recipe
            )
            for rooms, recipes in recipes_of.items()
            for recipe in recipes
            for seed in numbers
        }

    grid = {
        f"schedule_{rooms}_rooms_{schedule}": finetuning(0, rooms, schedule, None, LINEAR)
        for rooms in NUMS_ROOMS
        for schedule in SCHEDULES
    }
    found = bench.run(
        {**pretrainings("both", steps), **grid, "teacher": ("teacher", {}), "untrained": ("untrained", {})}
    )
    schedules = {
        rooms: max(SCHEDULES, key=lambda choice: found[f"schedule_{rooms}_rooms_{choice}"]["validation"]["miou"])
        for rooms in NUMS_ROOMS
    }
    found |= bench.run(
        {
            **finetunings(None, dict.fromkeys(NUMS_ROOMS, (LINEAR,))),
            **finetunings("both", dict.fromkeys(NUMS_ROOMS, RECIPES)),
        }
    )

    def mean_on_validation(choice: Choice, rooms: int) -> float:
        return fmean(scores_of(found, "both", choice, rooms, seed)["validation"]["miou"] for seed in numbers)

    chosen = {rooms: max(CHOICES, key=lambda choice: mean_on_validation(choice, rooms)) for rooms in NUMS_ROOMS}
    figures: dict[str, Any] = {
        "schedules": _by_rooms({rooms: schedule._asdict() for rooms, schedule in schedules.items()}),
        "validation": _by_rooms(
            {rooms: {str(each): round(mean_on_validation(each, rooms), 4) for each in CHOICES} for rooms in NUMS_ROOMS}
        ),
        "chosen": _by_rooms({rooms: str(choice) for rooms, choice in chosen.items()}),
    }
    if compare:
        found |= bench.run(pretrainings("e_alone", steps))
        cpu = {name: fmean(found[f"{name}_{seed}"]["cpu_seconds"] for seed in numbers) for name in ("both", "e_alone")}
        figures["brief_steps"] = round(steps * cpu["e_alone"] / cpu["both"])
        recipes = {rooms: (choice.recipe,) for rooms, choice in chosen.items()}
        found |= bench.run({**pretrainings("both_brief", figures["brief_steps"]), **finetunings("e_alone", recipes)})
        found |= bench.run(finetunings("both_brief", recipes))
    figures |= summarise(found, seeds, PRETRAININGS if compare else ("both",), chosen)
    rows = [{"job": name, **result} for name, result in found.items()]
    report = record("quickstart", steps, figures, rows, ("text4point", "torch", "deepspeed", "numpy"))
    print(json.dumps(report if as_json else figures, indent=None if as_json else 1))


def job_name(start: str | None, recipe: str, rooms: int, seed: int) -> str:
    """Of a fine-tuning."""
    return f"{start or 'scratch'}_{recipe}_{rooms}_rooms_{seed}"


def scores_of(
    found: Mapping[str, dict[str, Any]], start: str | None, choice: Choice, rooms: int, seed: int
) -> dict[str, Any]:
    """By rooms scored on: of a fine-tuning, or of the share of it."""
    job = found[job_name(start, choice.recipe, rooms, seed)]
    return job if choice.share == 1 else job["shares"][f"{choice.share:g}"]


def pretraining(seed: int, steps: int, with_d: bool) -> tuple[str, dict[str, Any]]:
    return "pretrain", {"seed": seed, "steps": steps, "with_d": with_d}


def finetuning(seed: int, rooms: int, schedule: Schedule, start: str | None, recipe: str) -> tuple[str, dict[str, Any]]:
    return "finetune", {"seed": seed, "rooms": rooms, **schedule._asdict(), "start": start, "recipe": recipe}


def _by_rooms(values: Mapping[int, Any]) -> dict[str, Any]:
    return {f"{rooms}_rooms": value for rooms, value in values.items()}


class Bench:
    """Runs jobs as processes and keeps what they found."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._tuned: dict[str, dict[str, Any]] = {}  # by what was asked: a fine-tuning with two names runs once

    def folder(self, name: str) -> Path:
        return self._out / "jobs" / name

    def exported(self, name: str) -> str:
        """The file that a pre-training leaves."""
        return str(self.folder(name) / "run" / "model.safetensors")

    def run(self, jobs: Jobs) -> dict[str, dict[str, Any]]:
        """By name, the results of (kind, arguments)."""
        with ThreadPoolExecutor(2) as pool:
            return dict(zip(jobs, pool.map(self._run, jobs, jobs.values()), strict=True))

    def _run(self, name: str, job: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        folder = self.folder(name)
        result = folder / "result.json"
        kind, arguments = job
        settings = {"series": SERIES, "shares": SHARES, "commit": commit()}
        asked = json.dumps({"kind": kind, "arguments": arguments, "origin": _origin(arguments), **settings})
        if asked in self._tuned:
            return self._tuned[asked]
        if not result.exists() or (folder / "job.json").read_text() != asked:
            shutil.rmtree(folder, ignore_errors=True)  # a run folder in it would be gone on from
            folder.mkdir(parents=True)
            (folder / "job.json").write_text(asked)
            environment = os.environ | {
                "OMP_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",
                "PYTHONPATH": str(REPOSITORY),
                "T4P_BENCH_SHARDS": str((self._out / "shards").resolve()),
            }
            with (folder / "log").open("w") as log:
                command = [sys.executable, __file__, "--out", str(folder), "--job", asked]
                subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
        found = json.loads(result.read_text())
        scores = {scored: round(found[scored]["miou"], 4) for scored in SCORED if scored in found}
        print(name, scores, f"{found.get('cpu_seconds', 0):.0f} CPU s", file=sys.stderr, flush=True)
        if kind == "finetune":
            self._tuned[asked] = found
        return found


def _origin(arguments: Mapping[str, Any]) -> str | None:
    """What was asked of the pre-training whose weights a job begins with: the same file may be of another one."""
    start = arguments.get("start")
    return start and (Path(start).parents[1] / "job.json").read_text()


def pack_all(folder: Path, seeds: int) -> None:
    """Every series, and the labelled rooms of every seed: they are among the training rooms."""
    from shards.manifest import MANIFEST_NAME
    from shards.packing.pack import pack
    from shards.reader import DatasetReader

    labelled = {
        f"labelled_{rooms}_{seed}": f"seed=1,rooms={rooms},first={4 * seed}"
        for rooms in NUMS_ROOMS
        for seed in range(seeds)
    }
    for name, series in {**SERIES, **labelled}.items():
        packed = folder / name
        if (packed / MANIFEST_NAME).exists():
            if DatasetReader(str(packed)).manifest.provenance["source"] == series:
                continue
            shutil.rmtree(packed)
        pack("synthetic", series, str(packed))


def shards(name: str) -> str:
    return str(Path(os.environ["T4P_BENCH_SHARDS"]) / name)


def pretrain_config(out: Path, seed: int, steps: int, with_d: bool) -> Any:
    from t4p.config.files import load_config

    overrides = [*job_overrides(out, seed, steps, "training"), f"loss.weight_d={1.0 if with_d else 0.0}"]
    return load_config(["configs/pretrain/rooms.yaml"], overrides)


def job_overrides(out: Path, seed: int, steps: int, dataset: str) -> list[str]:
    """What both kinds of training are told."""
    from commands.quickstart.stages import override

    return [
        override("run.dir", str(out / "run")),
        override("run.seed", seed),
        override("data.shards", [shards(dataset)]),
        "data.num_workers=0",
        override("train.num_steps", steps),
        override("train.checkpoint_every", steps),
    ]


def be_pretraining(out: Path, seed: int, steps: int, with_d: bool) -> dict[str, Any]:
    from t4p.tasks.pretrain import run

    config = pretrain_config(out, seed, steps, with_d)
    started = time.process_time()
    run(config)
    return {"cpu_seconds": time.process_time() - started, **export_and_score(config)}


def be_finetuning(
    out: Path,
    seed: int,
    rooms: int,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    start: str | None,
    recipe: str,
) -> dict[str, Any]:
    from commands.arguments import split_arguments
    from commands.quickstart.stages import override
    from t4p.config.files import load_config_of
    from t4p.config.tasks import SemanticConfig
    from t4p.tasks.semantic import run

    overrides = [
        *job_overrides(out, seed, steps, f"labelled_{rooms}_{seed}"),
        override("train.learning_rate", learning_rate),
        override("train.warmup_steps", warmup_steps),
        override("model.pretrained", start),
    ]
    config = load_config_of(SemanticConfig, *split_arguments([*RECIPES[recipe], *overrides]))
    started = time.process_time()
    run(config)
    found = {"cpu_seconds": time.process_time() - started, **export_and_score(config)}
    if config.model.head == "words":
        found["shares"] = {f"{share:g}": export_and_score(config, share) for share in SHARES}
    return found


def be_teacher(out: Path) -> dict[str, Any]:
    from t4p.metrics.semantic import best_trivial_miou
    from t4p.tasks.teacher import score_teacher

    config = pretrain_config(out, 0, 20, True)
    found = score_teacher(config, held_out("test"))
    return {
        "test": as_dict(found, config.model.label_names),
        "trivial_miou": best_trivial_miou(found.support.values()),
    }


def be_untrained(out: Path) -> dict[str, Any]:
    from t4p.tasks.evaluate import score_network
    from t4p.tasks.pretrain import untrained_network

    config = pretrain_config(out, 0, 20, True)
    return {"test": as_dict(score_network(untrained_network(config), held_out("test")), config.model.label_names)}


JOBS = {"pretrain": be_pretraining, "finetune": be_finetuning, "teacher": be_teacher, "untrained": be_untrained}


def held_out(name: str) -> Any:
    from t4p.config.data import EvaluatedDataConfig

    return EvaluatedDataConfig(shards=(shards(name),), num_workers=0)


def export_and_score(config: Any, finetuned_share: float = 1.0) -> dict[str, Any]:
    from commands.quickstart.rooms import export_last, score

    exported = export_last(config, finetuned_share)
    return {scored: as_dict(score(exported, held_out(scored)), config.model.label_names) for scored in SCORED}


def as_dict(found: Any, labels: Sequence[str]) -> dict[str, Any]:
    from shards.synthetic.furniture import STRUCTURE_NAMES

    furniture = [index for index, label in enumerate(labels) if label not in STRUCTURE_NAMES]
    return {**found.to_json(labels), "miou_furniture": found.miou_of(furniture)}


def summarise(
    found: dict[str, dict[str, Any]], seeds: int, pretrainings: Sequence[str], chosen: Mapping[int, Choice]
) -> dict[str, Any]:
    """The figures that README and RESULTS.md quote: means over seeds, and every seed, on the test rooms."""

    def each(name: str, key: str = "miou") -> list[float]:
        return [found[f"{name}_{seed}"]["test"][key] for seed in range(seeds)]

    def of(values: Iterable[float]) -> dict[str, Any]:
        listed = [round(value, 4) for value in values]
        return {"mean": round(fmean(listed), 4), "each": listed}

    teacher = found["teacher"]["test"]
    trivial = found["teacher"]["trivial_miou"]
    figures: dict[str, Any] = {
        "teacher_miou": teacher["miou"],
        "teacher_furniture_miou": teacher["miou_furniture"],
        "trivial_miou": trivial,
        "untrained_miou": found["untrained"]["test"]["miou"],
    }
    for name in pretrainings:
        figures[f"zero_shot_{name}"] = {
            "miou": of(each(name)),
            "furniture": of(each(name, "miou_furniture")),
            "share_of_teacher": of(miou / teacher["miou"] for miou in each(name)),
            "share_of_teacher_furniture": of(m / teacher["miou_furniture"] for m in each(name, "miou_furniture")),
            "times_trivial": of(miou / trivial for miou in each(name)),
            "cpu_seconds": of(found[f"{name}_{seed}"]["cpu_seconds"] for seed in range(seeds)),
        }

    def tuned(start: str | None, choice: Choice, rooms: int) -> list[float]:
        return [scores_of(found, start, choice, rooms, seed)["test"]["miou"] for seed in range(seeds)]

    for rooms in NUMS_ROOMS:
        scratch = tuned(None, Choice(LINEAR, 1.0), rooms)
        figures[f"scratch_{rooms}_rooms"] = of(scratch)
        reached = {f"both_{choice}": tuned("both", choice, rooms) for choice in CHOICES}
        reached |= {start: tuned(start, chosen[rooms], rooms) for start in pretrainings}
        for name, mious in reached.items():
            figures[f"{name}_{rooms}_rooms"] = of(mious)
            figures[f"gain_{name}_{rooms}_rooms"] = of(a - b for a, b in zip(mious, scratch, strict=True))
    return figures


if __name__ == "__main__":
    typer.run(main)
