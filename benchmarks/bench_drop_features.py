"""Can one network serve scans with and without colour? What `data.drop_features.color` costs and saves.

Three fine-tunings from scratch on procedural rooms, alike but for what they see of a voxel: its colour always, its
colour in half of the samples, no colour. Each is scored on rooms never seen, as they are and with all colours left out
(0 in their channels, which is middle grey), by ScanNet's protocol on points. There is no height among the features:
beside it the colours of these rooms are worth little (LOG.md, 2026-12-01).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer
from record import record
from t4p_command import t4p

from t4p.config.data import EvaluatedDataConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import build_label_recipe
from t4p.data.transforms import dropped_channels
from t4p.metrics.semantic import SemanticScores
from t4p.models.exported import ExportedNetwork, load_exported_network
from t4p.tasks.evaluate import predict, score_points, scored_stream

NETWORKS = {
    "colour": ("one, color", 0.0),
    "colour in half": ("one, color", 0.5),
    "no colour": ("one", 0.0),
}


def main(
    out: Annotated[Path, typer.Option(help="Folder of shards and run folders.")] = Path("runs/bench_drop_features"),
    steps: Annotated[int, typer.Option(min=11, help="Of a fine-tuning.")] = 200,
    rooms: Annotated[int, typer.Option(min=2, help="Labelled.")] = 12,
    held_out: Annotated[int, typer.Option(min=1, help="Rooms to score on.")] = 6,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Train, score, print a table, and append a line to results/drop_features.jsonl."""
    torch.set_num_threads(1)
    out = out.resolve()
    training, test = out / "rooms", out / "held_out"
    for place, text in ((training, f"seed=2,rooms={rooms},frames=12"), (test, f"seed=3,rooms={held_out},frames=12")):
        if not (place / "manifest.json").exists():
            t4p("shards", "pack", "synthetic-scenes", text, str(place))
    rows: list[dict[str, Any]] = []
    for seed in range(seeds):
        for name, (features, dropped) in NETWORKS.items():
            network = fine_tuned(out / f"{name.replace(' ', '_')}_{seed}", training, steps, seed, features, dropped)
            sees_colors = "color" in network.config.model.point_features
            for with_colors in (True, False) if sees_colors else (False,):
                found = score(network, test, with_colors)
                row = {"network": name, "seed": seed, "with_colors": with_colors}
                rows.append(row | {"miou": found.miou, "accuracy": found.accuracy})
                print(rows[-1], flush=True)
    figures = {
        f"{name}, {'with' if with_colors else 'without'}": fmean(row["miou"] for row in mine)
        for name in NETWORKS
        for with_colors in (True, False)
        if (mine := [row for row in rows if (row["network"], row["with_colors"]) == (name, with_colors)])
    }
    record("drop_features", steps, figures | {"rooms": rooms, "held_out": held_out}, rows, ("torch", "deepspeed"))
    for name, value in figures.items():
        print(f"{name:28}{value:8.3f}")


def fine_tuned(folder: Path, training: Path, steps: int, seed: int, features: str, dropped: float) -> ExportedNetwork:
    """A network after `steps` steps of two rooms."""
    t4p(
        *("finetune", "configs/finetune/rooms.yaml", f"data.shards=[{training}]", "data.ignored_labels=['*']"),
        *(f"run.dir={folder}", f"run.seed={seed}", f"model.point_features=[{features}]", "model.voxel_size=0.1"),
        *(f"data.drop_features.color={dropped}", f"train.num_steps={steps}", f"train.checkpoint_every={steps}"),
        *("train.global_batch_size=2", "data.num_workers=1"),
    )
    t4p("checkpoint", "export", str(folder), str(folder / "network.safetensors"), "--force")
    return load_exported_network(folder / "network.safetensors")


def score(network: ExportedNetwork, test: Path, with_colors: bool) -> SemanticScores:
    """Of every point of the test rooms."""
    scored = EvaluatedDataConfig(shards=(str(test),), ignored_labels=("*",), num_workers=0)
    catalogue, config = Catalogue(scored.shards), network.config
    recipe = build_label_recipe(catalogue, config.data, config.model, network.labels, ("*",), augment=None)
    left_out = torch.tensor(dropped_channels(config.model.point_features, () if with_colors else ("color",)))
    samples = (
        (predict(network, replace(batch, voxel_features=features))[batch.voxel_of_point], batch.label_of_point)
        for batch in scored_stream(scored, catalogue, recipe).batches()
        for features in [batch.voxel_features.masked_fill(left_out, 0)]
    )
    return score_points(samples, len(network.labels), scored.shards)


if __name__ == "__main__":
    typer.run(main)
