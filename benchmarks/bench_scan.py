"""Memory and CPU seconds of `t4p predict` and `t4p query` on large scans, each in a process of its own.

The scan is a building of procedural rooms side by side, each with the noise of another visit; the network is
Res16UNet34C, whose random weights cost what trained ones do. Peak memory is that of the process (`ru_maxrss`), files
and page included. The page holds a million of the points.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from record import REPOSITORY, record

from shards.doors.ply import write_ply
from shards.synthetic.cloud import make_scene
from t4p.config.kinds import task_named
from t4p.config.tasks import DetectionConfig, InstanceConfig, JobConfig
from t4p.data.transforms import voxelize
from t4p.models.exported import write_exported
from t4p.models.text4point import build_text4point
from t4p.tasks import detection, instance

NUM_ROOMS = 3  # that the building repeats
SPACING = 6.0  # metres between their corners
NOISE = 0.005  # metres
CLIP_DIM = 512
SHY = -6.5  # logit of every class of boxes before it has seen anything
NEUTRAL = ("object", "thing", "stuff", "texture")
# What is asked, and the task of the network that is.
ASKED = {"predict": "semantic", "query": "pretrain", "boxes": "detection", "masks": "instance"}


def main(
    points: Annotated[list[int], typer.Option(help="of the scans")] = [1_000_000, 10_000_000],  # noqa: B006
    asked: Annotated[list[str], typer.Option(help=f"of {', '.join(ASKED)}")] = list(ASKED),  # noqa: B006
    voxel_size: Annotated[float, typer.Option(help="metres")] = 0.02,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object of each")] = False,
) -> None:
    """One process after the other for every scan and question."""
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="bench-scan-") as scratch:
        folder = Path(scratch)
        for question in asked:
            write_network(folder / f"{question}.safetensors", ASKED[question], voxel_size)
        for num_points, scan, num_voxels in make_scans(folder, sorted(points), voxel_size):
            for question in asked:
                row: dict[str, Any] = {"asked": question, "points": num_points, "voxels": num_voxels}
                row |= {"voxel_size": voxel_size} | ask(
                    question, folder / f"{question}.safetensors", scan, folder / "out"
                )
                # At once: the largest takes longest, and is the likeliest to be stopped.
                figures = {f"{question}_{num_points / 1e6:g}M_{key}": row[key] for key in ("peak_gb", "cpu_seconds")}
                report = record("scan", 1, figures, [row], ("torch", "numpy"))
                typer.echo(
                    json.dumps(report) if as_json else "  ".join(f"{key} {_short(value)}" for key, value in row.items())
                )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_network(path: Path, task: str, voxel_size: float) -> None:
    """An export with random weights."""
    torch.manual_seed(0)
    tree = {
        "task": task,
        "run": {"dir": "nowhere"},
        "data": {"shards": ["nowhere"]},
        "model": {"voxel_size": voxel_size},
    }
    config: JobConfig = task_named(task).schema.model_validate(tree)
    net = build_text4point(config.model, CLIP_DIM, task_named(task).out_dim(config))
    weights = {f"net.{name}": value for name, value in net.state_dict().items()}
    if isinstance(config, DetectionConfig | InstanceConfig):
        head: torch.nn.Module = (
            detection.build_head(config, net, CLIP_DIM)
            if isinstance(config, DetectionConfig)
            else instance.build_head(config, CLIP_DIM)
        )
        weights |= {f"head.{name}": value for name, value in head.state_dict().items()}
    if isinstance(config, DetectionConfig):  # random weights would suggest thousands of boxes, trained ones do not
        weights["head.class_bias"] = torch.tensor([SHY])
    texts = torch.nn.functional.normalize(torch.randn(len(config.model.label_names) + len(NEUTRAL), CLIP_DIM), dim=1)
    labels, neutral = texts.split([len(config.model.label_names), len(NEUTRAL)])
    words = dict(zip(NEUTRAL, neutral, strict=True))
    write_exported(path, weights, labels, config, 0, "", {}, neutral=words)


def make_scans(folder: Path, sizes: list[int], voxel_size: float) -> Any:
    """Yields (points, path of a PLY, its voxels) of every size: rooms of a square building, the last one in part."""
    rooms = [make_scene(5, index, 48, 320, 240, "synthetic", str(index)) for index in range(NUM_ROOMS)]
    for num_points in sizes:
        path = folder / f"{num_points}.ply"
        points, colors = building([(room.points, room.rgb) for room in rooms], num_points)
        num_voxels = len(voxelize(torch.from_numpy(points), voxel_size).voxel_coords)
        write_ply(path, points, colors, {})
        del points, colors
        yield num_points, path, num_voxels
        path.unlink()


def building(
    rooms: list[tuple[NDArray[np.float32], NDArray[np.uint8]]], num_points: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """(N, 3) metres and (N, 3) colours."""
    rng = np.random.default_rng(0)
    points, colors, total = [], [], 0
    per_side = int(np.ceil(np.sqrt(num_points / np.mean([len(room) for room, _ in rooms]))))
    while total < num_points:
        room, color = rooms[len(points) % len(rooms)]
        corner = np.array([len(points) % per_side * SPACING, len(points) // per_side * SPACING, 0], np.float32)
        noise = rng.normal(0, NOISE, room.shape).astype(np.float32)
        points.append((room + corner + noise)[: num_points - total])
        colors.append(color[: num_points - total])
        total += len(points[-1])
    return np.concatenate(points), np.concatenate(colors)


def ask(question: str, network: Path, scan: Path, out: Path) -> dict[str, Any]:
    """Peak memory and CPU seconds of one command."""
    words = ["chair", "table"] if question == "query" else []
    verb = "query" if question == "query" else "predict"
    command = [sys.executable, "-m", "commands.main", verb, str(network), str(scan), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (out.parent / "said.txt").open("wb") as said:
        started = subprocess.Popen(
            [*command, "--out", str(out), "--force", "--unit", "m", "--up", "z"],
            cwd=REPOSITORY,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(started.pid, 0)
        started.returncode = os.waitstatus_to_exitcode(status)
    if started.returncode:
        raise SystemExit((out.parent / "said.txt").read_text())
    return {
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "written_gb": sum(path.stat().st_size for path in out.iterdir()) / 1e9,
    }


if __name__ == "__main__":
    typer.run(main)
