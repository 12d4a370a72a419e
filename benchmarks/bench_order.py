"""Who reads and trains what, by simulation: locality, balance and mixing pull apart; one configuration has all.

Nothing is read but depth images of real recordings, for their voxels (occupied 2.5 cm cells at stride 2). A dataset of
500 shards of 2,000 frames is made of scenes of 300 to 3,000 frames; a scene runs through one of the recordings at a
pace of its own, all its counts times a factor that is its own too (log-normal, 0.25).

slowest   voxels of the rank with the most, over the mean, of a batch of 4 frames a rank: as the order has them
          (`as_read`), and as they are given to ranks (`slowest`).
exchanged share of a batch that another node trains than the one that reads its block.
bytes     what a node reads over what its ranks train: each exchanged sample is read twice.
mixing    distinct shards of a batch, over those of one drawn at random.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from record import record
from rich.console import Console
from rich.table import Table

from t4p.data.course import Course, CourseSettings, Pool
from t4p.data.ranks import Nodes, ranks_of_batch, slowest_share

SHARDS, SAMPLES = 500, 2_000
SAMPLE_BYTES = 124_000  # of a real frame, 640x480, JPEG and PNG
WORLDS = ((8, 8, 4), (64, 8, 4), (256, 8, 4), (1024, 8, 4))  # ranks, ranks of a node, frames of a rank
CELL = 0.025  # metres


def main(
    recordings: Annotated[list[Path], typer.Argument(help="Folders with depth images of one recording each.")],
    steps: Annotated[int, typer.Option(min=1, help="Batches of each world, at most.")] = 60,
    shares: Annotated[str, typer.Option(help="Of scenes from each recording.")] = "0.7,0.3",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Simulate a part of an epoch at several world sizes."""
    counts = [count_voxels(folder) for folder in recordings]
    rng = np.random.default_rng(0)
    voxels = make_dataset(counts, [float(share) for share in shares.split(",")], rng)
    rows = [simulate(voxels, *world, steps) for world in WORLDS]
    figures = {f"{name}_{row['ranks']}": row[name] for row in rows for name in ("slowest", "bytes", "mixing")}
    report = record("order", steps, figures, rows, ("numpy",))
    if as_json:
        print(json.dumps(report))
        return
    table = Table(*rows[0], title="who reads and trains what")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)


def count_voxels(folder: Path) -> NDArray[np.int64]:
    """Occupied cells of every depth image of a recording, millimetres or TUM's fifths of them, a Kinect's camera."""
    found = sorted([*folder.glob("*.depth.png"), *folder.glob("depth/*.png")])
    scale = 5000.0 if (folder / "depth").is_dir() else 1000.0
    counts = []
    for path in found:
        depth = np.asarray(Image.open(path)).astype(np.float32)[::2, ::2]
        depth[depth == 65535] = 0
        rows, cols = np.nonzero((depth > 0) & (depth < 10 * scale))
        z = depth[rows, cols] / scale
        points = np.stack([(2 * cols - 320) / 550 * z, (2 * rows - 240) / 550 * z, z], axis=1)
        counts.append(len(np.unique(np.floor(points / CELL).astype(np.int64), axis=0)))
    return np.array(counts)


def make_dataset(counts: list[NDArray[np.int64]], shares: list[float], rng: np.random.Generator) -> NDArray[np.uint16]:
    """(N,) voxels of the frames of a dataset, scene after scene."""
    scenes: list[NDArray[np.float64]] = []
    while sum(map(len, scenes)) < SHARDS * SAMPLES:
        recording = counts[int(rng.choice(len(counts), p=shares[: len(counts)]))]
        length, pace = int(rng.integers(300, 3000)), rng.uniform(0.05, 0.5)
        at = (rng.random() * len(recording) + np.arange(length) * pace) % len(recording)
        scenes.append(recording[at.astype(int)] * np.exp(0.25 * rng.standard_normal()))
    return np.concatenate(scenes)[: SHARDS * SAMPLES].clip(1, 65535).astype(np.uint16)


def simulate(
    voxels: NDArray[np.uint16], ranks: int, ranks_per_node: int, frames: int, steps: int
) -> dict[str, float | int]:
    samples = np.full(SHARDS, SAMPLES)
    nodes, batch_size = Nodes.equal(ranks, ranks_per_node), ranks * frames
    settings = CourseSettings(3, 64, 8 << 20, batch_size, 1, nodes)
    course = Course([Pool(samples, samples * SAMPLE_BYTES, voxels)], settings)
    measured = []
    for step in range(5, 5 + min(steps, SHARDS * SAMPLES // batch_size - 5)):
        began = time.process_time()
        batch = course.micro_batch(step, 0)
        seconds = time.process_time() - began
        (_, _, found) = batch.places[0]
        loads = voxels[found.samples @ [SAMPLES, 1]].astype(np.int64)
        as_read = ranks_of_batch(found.streams, None, nodes)
        exchanged = (nodes.of_stream(found.streams) != np.array(nodes.of_rank)[batch.ranks]).mean()
        by_chance = SHARDS * (1 - (1 - 1 / SHARDS) ** batch_size)
        shards = len(np.unique(found.samples[:, 0])) / by_chance
        slowest = [slowest_share(given, loads, ranks) for given in (as_read, batch.ranks)]
        measured.append((*slowest, exchanged, shards, 1000 * seconds))
    as_read, slowest, exchanged, mixing, milliseconds = np.mean(measured, axis=0).tolist()
    return {
        "ranks": ranks,
        "batch": batch_size,
        "as_read": as_read,
        "slowest": slowest,
        "slowest_of_all": float(np.max(measured, axis=0)[1]),
        "exchanged": exchanged,
        "bytes": 1 + exchanged,
        "mixing": mixing,
        "ms_a_batch": milliseconds,
    }


if __name__ == "__main__":
    typer.run(main)
