"""CPU seconds of the scores of instances and boxes, on made inputs of full size.

instances   one scene of 150,000 points, 40 true instances of 18 classes, 100 predictions
boxes       2,000 x 500 boxes in a house of 20 x 20 x 3 m, or all over each other, where no pair can be skipped
suppress    256 proposals of one class within a metre
split       312 scenes of 256 proposals and 15 true boxes of 18 classes, as ScanNet's validation split has
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from record import record

from t4p.metrics import detection, instance


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Time each, the contenders taking turns; the first turn is the warm-up."""
    contenders = build_contenders(np.random.default_rng(0))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, contender in contenders.items():
            start = time.process_time()
            contender()
            if repeat:
                seconds[name].append(time.process_time() - start)
    rows = [
        {"what": name, "cpu_median": statistics.median(found), "cpu_max": max(found)} for name, found in seconds.items()
    ]
    report = record("scores", repeats, {row["what"]: row["cpu_median"] for row in rows}, rows, ("numpy",))
    if as_json:
        typer.echo(json.dumps(report))
        return
    for row in rows:
        typer.echo(f"{row['what']:16} {row['cpu_median']:8.3f} CPU s, at most {row['cpu_max']:.3f}")


def build_contenders(rng: np.random.Generator) -> dict[str, Callable[[], Any]]:
    """What is timed, on inputs that are made beforehand."""
    num_points, num_masks = 150_000, 100
    number = np.sort(rng.integers(1, 41, num_points))
    masks = (number == rng.integers(1, 41, (num_masks, 1))) ^ (rng.random((num_masks, num_points)) < 0.02)
    scene = instance.InstanceScene(
        number % 18 + 1, number, masks, rng.integers(1, 19, num_masks), rng.random(num_masks)
    )
    house = [made_boxes(rng, count, (20, 20, 3)) for count in (2000, 500)]
    heap = [made_boxes(rng, count, (0.1, 0.1, 0.1)) for count in (2000, 500)]
    proposals, scores = made_boxes(rng, 256, (1, 1, 1)), rng.random(256)
    predictions = [
        detection.Detections(made_boxes(rng, 256, (6, 6, 3)), rng.integers(0, 18, 256), rng.random(256))
        for _ in range(312)
    ]
    targets = [detection.Boxes(made_boxes(rng, 15, (6, 6, 3)), rng.integers(0, 18, 15)) for _ in range(312)]
    return {
        "instances": lambda: instance.evaluate([scene], range(1, 19)),
        "boxes": lambda: detection.box_iou(*house),
        "boxes_in_a_heap": lambda: detection.box_iou(*heap),
        "suppress": lambda: detection.suppress(proposals, np.zeros(256, int), scores, 0.25),
        "split": lambda: detection.evaluate(predictions, targets),
    }


def made_boxes(rng: np.random.Generator, count: int, extent: tuple[float, float, float]) -> NDArray[np.float64]:
    """(count, 7), sizes from 0.2 to 2 m, at any angle, centres within the extent."""
    return np.column_stack(
        [rng.uniform(0, extent, (count, 3)), rng.uniform(0.2, 2, (count, 3)), rng.uniform(-np.pi, np.pi, count)]
    )


if __name__ == "__main__":
    typer.run(main)
