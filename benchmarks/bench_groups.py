"""Groups of points without a mesh: CPU seconds for 150,000 points, and how well they keep the objects of rooms apart.

Rooms are procedural ones, whose objects are known point by point. Purity is the share of points whose group mostly
belongs to their object; the IoU that is in reach is that of an object with all groups which mostly belong to it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from record import REPOSITORY, record

from shards.scene import Scene
from shards.synthetic.cloud import make_scene
from t4p.data.groups import group_points
from t4p.data.tensors import as_tensor

NUM_TIMED = 150_000  # points


def main(
    seed: Annotated[int, typer.Option(help="of the series of rooms; the settings were chosen on 101")] = 102,
    rooms: Annotated[int, typer.Option(min=1)] = 10,
    frames: Annotated[int, typer.Option(min=3, help="views that make a room's points")] = 36,
    repeats: Annotated[int, typer.Option(min=1, help="of the timing")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Purity, groups and CPU seconds, with colours and without; every point's object is its (class, instance)."""
    torch.set_num_threads(1)
    scenes = [make_scene(seed, index, frames, 160, 120, "synthetic", str(index)) for index in range(rooms)]
    rows = [
        {"room": scene.scene_id, "colors": with_colors} | judged(scene, with_colors)
        for scene in scenes
        for with_colors in (True, False)
    ]
    figures: dict[str, Any] = {}
    for with_colors, name in ((True, "colors"), (False, "normals_alone")):
        of_kind = [row for row in rows if row["colors"] is with_colors]
        for key in ("purity", "reachable_iou", "groups"):
            figures[f"{name}_{key}"] = statistics.mean(row[key] for row in of_kind)
        figures[f"{name}_least_purity"] = min(row["purity"] for row in of_kind)
    figures |= timed(max(scenes, key=lambda scene: len(scene.points)), repeats)
    report = record("groups", repeats, figures, rows, ("torch", "numpy"))
    if as_json:
        typer.echo(json.dumps(report))
        return
    for key, value in figures.items():
        typer.echo(f"{key:32}{value:10.4g}")


def grouped(scene: Scene, with_colors: bool) -> NDArray[np.int64]:
    colors = as_tensor(scene.rgb).float() / 255 if with_colors else None
    return group_points(as_tensor(scene.points), colors).numpy()


def judged(scene: Scene, with_colors: bool) -> dict[str, Any]:
    """Groups held against the objects of a scene."""
    group = grouped(scene, with_colors)
    objects = np.stack([scene.semantic, scene.instance])
    _, object_of_point = np.unique(objects, axis=1, return_inverse=True)
    counts = np.zeros((group.max() + 1, object_of_point.max() + 1), np.int64)
    np.add.at(counts, (group, object_of_point), 1)
    mostly = counts.argmax(1)
    ious = []
    for index in range(counts.shape[1]):
        mine = counts[mostly == index]
        inside = mine[:, index].sum()
        ious.append(inside / (mine.sum() + counts[:, index].sum() - inside))
    return {
        "points": len(group),
        "objects": counts.shape[1],
        "groups": len(counts),
        "purity": float(counts.max(1).sum() / len(group)),
        "reachable_iou": float(np.mean(ious)),
        "least_reachable_iou": float(np.min(ious)),
    }


def timed(scene: Scene, repeats: int) -> dict[str, float]:
    """CPU seconds for NUM_TIMED points drawn from a scene, with the time of the tests' loop beside them."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    import budget

    drawn = np.sort(np.random.default_rng(0).permutation(len(scene.points))[:NUM_TIMED])
    scene = replace(scene, points=scene.points[drawn], rgb=scene.rgb[drawn])
    seconds, loops = [], []
    for _ in range(repeats):
        loops.append(budget.calibrate())
        begun = time.process_time()
        grouped(scene, with_colors=True)
        seconds.append(time.process_time() - begun)
    return {
        "timed_points": len(drawn),
        "cpu_seconds": statistics.median(seconds),
        "loop_cpu_seconds": statistics.median(loops),
    }


if __name__ == "__main__":
    typer.run(main)
