"""The streamed contrastive loss against open_clip's ClipLoss: seconds and peak memory of forward and backward.

Each measurement is a fresh process (peak memory only ever grows within one), the two implementations take turns, and
both get the same embeddings. Single process, CPU. With `--frames`, only the loss of distinct ends against that of a row
per pair, on the pairs of four real frames as training draws them, both taking turns in this process.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from record import record

REPOSITORY = Path(__file__).resolve().parents[1]
FRAME_CONFIGS = (("pretrain/scannet.yaml", ("data.frame=camera",)), ("smoke.yaml", ()))
NUM_FRAMES = 4


class Implementation(StrEnum):
    STREAMED = "streamed"
    OPEN_CLIP = "open_clip"


def main(
    num_pairs: Annotated[list[int] | None, typer.Option(help="Sizes to measure.")] = None,
    dim: Annotated[int, typer.Option(help="Embedding size.")] = 512,
    repeats: Annotated[int, typer.Option(help="Fresh processes per size and implementation.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = os.cpu_count() or 1,
    frames: Annotated[str, typer.Option(help="A dataset of frames: distinct ends against a row per pair.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    measure: Annotated[Implementation | None, typer.Option(help="Internal: be one measurement.", hidden=True)] = None,
) -> None:
    sizes = num_pairs or [4096, 8192, 16384]
    if measure is not None:
        print(json.dumps(measure_here(measure, sizes[0], dim)))
        return
    if frames:
        rows = [
            row for config, overrides in FRAME_CONFIGS for row in compare_on_frames(frames, config, overrides, repeats)
        ]
        figures = {f"cpu_ratio_{row['config']}_{row['loss']}": row["cpu_ratio"] for row in rows}
        report = record("contrastive_ends", repeats, figures, rows, ("torch",))
        print(json.dumps(report) if as_json else "\n".join(map(str, rows)))
        return
    rows = [summarise(size, dim, repeats, threads) for size in sizes]
    figures = {}
    for row in rows:
        for name in ("time_ratio", "cpu_ratio", "memory_ratio"):
            figures[f"{name}_{row['num_pairs']}"] = row[name]
    report = record("contrastive", repeats, figures, rows, ("torch", "open_clip_torch"))
    if as_json:
        print(json.dumps(report))
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


def compare_on_frames(url: str, config_file: str, overrides: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """L_e and L_d of four frames of the first shard: medians of CPU seconds, forward and backward."""
    import torch

    from t4p.config.files import load_config
    from t4p.data.batch import PairRecipe
    from t4p.data.fetch import Catalogue
    from t4p.losses.contrastive import contrastive_loss, contrastive_loss_of_ends, distinct_ends
    from t4p.models.towers import load_towers_from
    from t4p.tasks.pretrain import build_sample_settings

    torch.set_num_threads(1)
    config = load_config([REPOSITORY / "configs" / config_file], [f"data.shards=[{url}]", *overrides])
    towers = load_towers_from(config.model.clip.model_copy(update={"pretrained": "random"}), 0)
    catalogue, recipe = Catalogue(config.data.urls), PairRecipe(build_sample_settings(config, towers))
    places = [index * (int(catalogue.samples_per_shard[0]) // NUM_FRAMES) for index in range(NUM_FRAMES)]
    batch = recipe.join([recipe.make(catalogue.fetch(0, i), 0, catalogue.key(0, i), 0) for i in places])
    rows = []
    for name, dim, *pairs in (
        ("L_e", towers.embed_dim, batch.voxel_of_pair_e, batch.cell_of_pair_e),
        ("L_d", config.model.embed_dim_d, batch.voxel_of_pair_d, batch.pixel_of_pair_d),
    ):
        ends = distinct_ends(torch.stack(pairs))
        generator = torch.Generator().manual_seed(0)
        unit = [
            torch.nn.functional.normalize(torch.randn(len(end), dim, generator=generator), dim=1) for end in ends[:2]
        ]
        seconds: dict[str, list[float]] = {"ends": [], "rows": []}
        losses: dict[str, float] = {}
        for _ in range(repeats):
            for form, measured in seconds.items():
                points, pixels = (rows_of_end.clone().requires_grad_() for rows_of_end in unit)
                scale = torch.tensor(14.3, requires_grad=True)
                started = time.process_time()
                if form == "ends":
                    loss = contrastive_loss_of_ends(points, pixels, scale, ends.pairs)
                else:
                    loss = contrastive_loss(points[ends.pairs[0]], pixels[ends.pairs[1]], scale, *pairs)
                loss.backward()
                measured.append(time.process_time() - started)
                losses[form] = loss.item()
        row: dict[str, Any] = {"config": config_file, "loss": name, "dim": dim, "pairs": len(pairs[0])}
        row |= {"points": len(ends.points), "pixels": len(ends.pixels), "losses": losses}
        row |= {f"{form}_cpu_seconds": statistics.median(measured) for form, measured in seconds.items()}
        rows.append(row | {"cpu_ratio": row["rows_cpu_seconds"] / row["ends_cpu_seconds"]})
    return rows


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
