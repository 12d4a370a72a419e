"""Sparse convolution backends: forward + backward of one U-Net on one frame, interleaved, median of the repeats."""

from __future__ import annotations

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from record import record

from t4p.config.plans import PLANS
from t4p.models.sparse.pyramid import SparseBackend, build_pyramid
from t4p.models.unet import SparseUNet

# (backend, dtype of the GEMMs), measured in this order within every repeat so that a noisy minute hits all of them
CONTENDERS: tuple[tuple[SparseBackend, torch.dtype], ...] = (
    ("native", torch.float32),
    ("minkowski", torch.float32),
    ("native", torch.bfloat16),
)


def main(
    depth: Annotated[
        Path | None, typer.Option(help="16-bit depth PNG in mm, 640x480, f = 585; default: a box room")
    ] = None,
    voxel_size: Annotated[float, typer.Option(help="metres")] = 0.02,
    plan: Annotated[str, typer.Option(help=f"one of {', '.join(PLANS)}")] = "Res16UNet34C",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[list[int] | None, typer.Option(help="thread counts, repeat the option; default 1 and 2")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Time native against minkowski, coordinates to gradients (kernel maps included)."""
    voxel_coords = voxelise(room_depth() if depth is None else read_depth(depth), voxel_size)
    torch.manual_seed(0)
    network = SparseUNet(3, PLANS[plan])
    features = torch.randn(len(voxel_coords), 3)
    rows = []
    for num_threads in threads or [1, 2]:
        torch.set_num_threads(num_threads)
        seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for repeat in range(repeats + 1):  # the first is the warm-up
            for backend, dtype in CONTENDERS:
                measured = time_step(network, backend, dtype, voxel_coords, features)
                if repeat:
                    seconds.setdefault((backend, str(dtype).removeprefix("torch.")), []).append(measured)
        for (backend, dtype_name), measurements in seconds.items():
            wall, cpu = zip(*measurements, strict=True)
            rows.append(
                {
                    "backend": backend,
                    "dtype": dtype_name,
                    "threads": num_threads,
                    "wall_median": statistics.median(wall),
                    "wall_min": min(wall),
                    "cpu_median": statistics.median(cpu),
                    "cpu_min": min(cpu),
                }
            )
    figures = {"num_voxels": len(voxel_coords), "num_parameters": sum(p.numel() for p in network.parameters())}
    for row in rows:
        figures[f"{row['backend']}_{row['dtype']}_{row['threads']}t_seconds"] = row["wall_median"]
    report = record("sparse", repeats, figures, rows, ("torch", "numpy", "MinkowskiEngine"))
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{plan}, {figures['num_parameters']:,} parameters, {len(voxel_coords):,} voxels; seconds, median (min)")
    for row in rows:
        name = f"{row['backend']} {row['dtype']}, {row['threads']} thread(s)"
        typer.echo(
            f"{name:32} wall {row['wall_median']:.2f} ({row['wall_min']:.2f})  CPU {row['cpu_median']:.2f} "
            f"({row['cpu_min']:.2f})"
        )


def time_step(
    network: SparseUNet, backend: SparseBackend, dtype: torch.dtype, voxel_coords: torch.Tensor, features: torch.Tensor
) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one step; CPU seconds stay meaningful on a busy machine."""
    network.zero_grad(set_to_none=True)
    wall, cpu = time.perf_counter(), cpu_seconds()
    pyramid = build_pyramid(backend, voxel_coords, network.num_levels)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = network(pyramid, features)
    output.square().mean().backward()
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def read_depth(path: Path) -> np.ndarray:
    """(480, 640) metres; 0 and 65535 are no reading."""
    from PIL import Image

    depth_mm = np.asarray(Image.open(path)).astype(np.float64)
    return np.where(depth_mm < 65535, depth_mm, 0) / 1000


def room_depth() -> np.ndarray:
    """(480, 640) metres: a box room of 4 x 2.5 x 3.5 m with a sphere in it, seen from one end."""
    row, col = np.mgrid[:480, :640]
    rays = np.stack([(col - 320) / 585, (row - 240) / 585, np.ones(row.shape)], axis=-1)
    with np.errstate(divide="ignore"):
        depth = np.minimum.reduce([np.abs(2.0 / rays[..., 0]), np.abs(1.25 / rays[..., 1]), np.full(row.shape, 3.5)])
    centre, radius = np.array([0.4, 0.5, 2.0]), 0.5
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
    inside = b * b - a * c
    return np.where(inside > 0, np.minimum(depth, (b - np.sqrt(np.maximum(inside, 0))) / a), depth)


def voxelise(depth: np.ndarray, voxel_size: float) -> torch.Tensor:
    """Canonical voxel_coords (V, 4) of one depth image (480, 640) in metres, camera axes."""
    row, col = np.nonzero(depth)
    z = depth[row, col]
    points = np.stack([(col - 320) * z / 585, (row - 240) * z / 585, z], axis=1)
    xyz = np.unique(np.floor(points / voxel_size).astype(np.int32), axis=0)
    return torch.from_numpy(np.concatenate([np.zeros((len(xyz), 1), np.int32), xyz], axis=1))


if __name__ == "__main__":
    typer.run(main)
