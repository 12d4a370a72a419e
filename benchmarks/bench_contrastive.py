"""The streamed contrastive loss against open_clip's ClipLoss: seconds and peak memory of forward and backward.

Each measurement is a fresh process (peak memory only ever grows within one), the two implementations take turns, and
both get the same embeddings. Single process, CPU.
"""

import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

REPOSITORY = Path(__file__).resolve().parents[1]


class Implementation(StrEnum):
    STREAMED = "streamed"
    OPEN_CLIP = "open_clip"


def main(
    num_pairs: Annotated[list[int] | None, typer.Option(help="Sizes to measure.")] = None,
    dim: Annotated[int, typer.Option(help="Embedding size.")] = 512,
    repeats: Annotated[int, typer.Option(help="Fresh processes per size and implementation.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = os.cpu_count() or 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    measure: Annotated[Implementation | None, typer.Option(help="Internal: be one measurement.", hidden=True)] = None,
) -> None:
    sizes = num_pairs or [4096, 8192, 16384]
    if measure is not None:
        print(json.dumps(measure_here(measure, sizes[0], dim)))
        return
    rows = [summarise(size, dim, repeats, threads) for size in sizes]
    figures = {}
    for row in rows:
        for name in ("time_ratio", "cpu_ratio", "memory_ratio"):
            figures[f"{name}_{row['num_pairs']}"] = row[name]
    if as_json:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "open_clip_torch")}
        machine = {"processor": platform.machine(), "cores": os.cpu_count(), "threads": threads}
        print(json.dumps({"figures": figures, "rows": rows, "machine": machine, "versions": versions}))
        return
    print(f"{'pairs':>7} {'streamed':>20} {'open_clip':>20} {'time':>6} {'memory':>7}   (d = {dim})")
    for row in rows:
        ours, theirs = (f"{row[f'{i}_seconds']:.2f} s {row[f'{i}_bytes'] / 1e6:8.0f} MB" for i in Implementation)
        print(f"{row['num_pairs']:>7} {ours:>20} {theirs:>20} {row['time_ratio']:>6.2f} {row['memory_ratio']:>7.3f}")


def summarise(num_pairs: int, dim: int, repeats: int, threads: int) -> dict[str, float]:
    """Medians over fresh processes that take turns; ratios are streamed over open_clip."""
    found: dict[Implementation, list[dict[str, float]]] = {implementation: [] for implementation in Implementation}
    for _ in range(repeats):
        for implementation in Implementation:
            found[implementation].append(measure_in_fresh_process(implementation, num_pairs, dim, threads))
    row: dict[str, float] = {"num_pairs": num_pairs, "dim": dim, "repeats": repeats}
    for implementation, measurements in found.items():
        for name in ("seconds", "cpu_seconds", "bytes", "loss"):
            row[f"{implementation}_{name}"] = statistics.median(m[name] for m in measurements)
    row["time_ratio"] = row["streamed_seconds"] / row["open_clip_seconds"]
    row["cpu_ratio"] = row["streamed_cpu_seconds"] / row["open_clip_cpu_seconds"]
    row["memory_ratio"] = row["streamed_bytes"] / row["open_clip_bytes"]
    return row


def measure_in_fresh_process(
    implementation: Implementation, num_pairs: int, dim: int, threads: int
) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", implementation, "--num-pairs", str(num_pairs), "--dim", str(dim)]
    # Passive: threads that spin at barriers measure who else uses the machine.
    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {implementation} at {num_pairs} pairs failed:\n{done.stderr}")
    return json.loads(done.stdout)


def measure_here(implementation: Implementation, num_pairs: int, dim: int) -> dict[str, float]:
    """One forward and backward pass; memory above what inputs, and a warm-up on 64 pairs, take."""
    import torch
    from open_clip.loss import ClipLoss

    from t4p.losses.contrastive import contrastive_loss

    def step(points: torch.Tensor, pixels: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
        if implementation is Implementation.OPEN_CLIP:
            loss = ClipLoss()(points, pixels, logit_scale)
        else:
            ids = torch.arange(len(points))
            loss = contrastive_loss(points, pixels, logit_scale, ids, ids)
        loss.backward()
        return loss

    generator = torch.Generator().manual_seed(0)
    points, pixels = (
        torch.nn.functional.normalize(torch.randn(num_pairs, dim, generator=generator), dim=1) for _ in range(2)
    )
    for leaf in (points, pixels):
        leaf.requires_grad_()
    logit_scale = torch.tensor(14.3, requires_grad=True)
    step(*(leaf[:64].detach().requires_grad_() for leaf in (points, pixels)), logit_scale)
    base, started, cpu_started = peak_bytes(), time.perf_counter(), time.process_time()
    loss = step(points, pixels, logit_scale)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "bytes": peak_bytes() - base,
        "loss": loss.item(),
    }


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
