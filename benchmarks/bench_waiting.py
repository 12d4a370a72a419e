"""What a training waits for its data, by how much faster its loaders could be than it is: where it begins to starve.

A real S3 server on loopback behind a proxy that waits before it passes on a request; frames made of real ones, no two
alike, and a cold cache for every row. The loaders do all that a training on CPUs makes them do (decoding, points,
voxels, pairs); the training is a sleep of so many seconds a step, as of a host whose accelerator computes.

spare     capacity over need: samples a second of loaders that nobody holds up, over those that the training takes
waited    share of the time that it waits for a batch, after the first fifth of the steps
pss_mb    of a loader process, its share of what it has in common with others included
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import typer
from bench_stream import behind_proxy, python, stored_frames
from record import REPOSITORY, record
from rich.console import Console
from rich.table import Table

NUM_WORKERS, BATCH = 2, 8


def main(
    frames: Annotated[Path | None, typer.Argument(help="A folder of real frames in the layout of 7-Scenes.")] = None,
    samples: Annotated[int, typer.Option(min=400, help="Frames made of them.")] = 3000,
    delay: Annotated[float, typer.Option(help="Milliseconds a request.")] = 80,
    spares: Annotated[str, typer.Option(help="Capacities over need.")] = "0.7,0.9,1.0,1.1,1.2,1.5,2,3",
    steps: Annotated[int, typer.Option(min=20, help=f"Of {BATCH} samples each, a row.")] = 100,
    config: Annotated[str, typer.Option(help="What samples are made by.")] = "configs/smoke.yaml",
    raw: Annotated[Path | None, typer.Option(help="Frames that an earlier call made, or where to make them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    be: Annotated[float | None, typer.Option(help="Internal: seconds of a step.", hidden=True)] = None,
) -> None:
    """Train at several speeds."""
    if be is not None:
        print(json.dumps(be_training(be, config, steps)))
        return
    own = [*python(sys.executable), __file__, "--config", config, "--steps", str(steps)]
    rows = []
    with stored_frames(frames, raw, samples) as (_, environ), behind_proxy(delay, environ) as (behind, _):
        train = partial(train_once, own, behind)
        for spare in map(float, spares.split(",")):
            # How fast loaders are changes with whatever else runs: measured anew beside each row.
            capacity = statistics.mean([train(0)["rate"] for _ in range(2)])
            found = train(spare * BATCH / capacity)
            rows.append({"spare": capacity / found["needed"], "capacity": capacity, **found})
    figures = {f"waited_at_{row['spare']:.2f}": row["waited"] for row in rows}
    figures["pss_mb"] = max(row["pss_mb"] for row in rows)
    report = record("waiting", steps, figures, rows, ("torch", "obstore"))
    if as_json:
        print(json.dumps(report))
        return
    table = Table(*rows[0], title=f"{NUM_WORKERS} loaders, batches of {BATCH}, {delay:g} ms a request")
    for row in rows:
        table.add_row(*(f"{value:.3f}" for value in row.values()))
    Console(width=120).print(table)


def train_once(own: list[str], environ: dict[str, str], seconds: float) -> dict[str, Any]:
    """What a training of steps of so many seconds finds, in a process of its own."""
    command = [*own, "--be", str(seconds)]
    ran = subprocess.run(command, env=environ, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.strip().splitlines()[-1])


def be_training(seconds: float, config_file: str, steps: int) -> dict[str, float]:
    """Take batches, and sleep after each."""
    from t4p.config.files import load_config
    from t4p.data.batch import PairRecipe
    from t4p.data.fetch import Catalogue
    from t4p.models.towers import zero_towers_of
    from t4p.tasks.job import build_training_stream
    from t4p.tasks.pretrain import build_sample_settings

    with TemporaryDirectory() as cache:
        config = load_config(
            [Path(config_file)],
            [
                "data.shards=[s3://bench/data]",
                f"data.num_workers={NUM_WORKERS}",
                f"train.global_batch_size={BATCH}",
                f"data.cache_dir={cache}/samples",
            ],
        )
        recipe = PairRecipe(build_sample_settings(config, zero_towers_of(config.model.clip)))
        stream = build_training_stream(config, Catalogue(config.data.urls), recipe)
        waits, stamps, pss = [], [], []
        with closing(stream.batches(0, steps)) as batches:
            for step in range(steps):
                began = time.monotonic()
                next(batches)
                waits.append(time.monotonic() - began)
                if step == steps // 2:
                    pss = [loader.memory_full_info().pss for loader in loaders()]
                time.sleep(seconds)
                stamps.append(time.monotonic())
    fifth = steps // 5
    spent = stamps[-1] - stamps[fifth - 1]
    return {
        "needed": BATCH / seconds if seconds else 0.0,
        "rate": BATCH * (steps - fifth) / spent,
        "waited": sum(waits[fifth:]) / spent,
        "pss_mb": statistics.mean(pss) / 1e6,
    }


def loaders() -> list[psutil.Process]:
    """The loader processes of this one."""
    return [child for child in psutil.Process().children() if child.name() == "pt_data_worker"]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    typer.run(main)
