"""From stored frames to training samples: CPU seconds by stage, on one core, every frame another one.

Another working tree of this repository (`--beside DIR`, of an older commit, say) takes turns with this one, on the same
frames, each in a process of its own: a noisy minute hits both.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from record import REPOSITORY, record

CONFIGS = {"smoke": "configs/smoke.yaml", "scannet": "configs/pretrain/scannet.yaml"}
FRAMES_A_TURN = 5


def main(
    frames: Annotated[Path, typer.Argument(help="a folder of real frames to pack")],
    layout: Annotated[str, typer.Option(help="its format, as `t4p shards pack` names it")] = "seven-scenes",
    turns: Annotated[int, typer.Option(min=2, help=f"of {FRAMES_A_TURN} frames each")] = 8,
    depth_codec: Annotated[str, typer.Option(help="png or zstd; an older tree has PNG")] = "png",
    beside: Annotated[Path | None, typer.Option(help="another working tree")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Frames per core-second at the settings of smoke.yaml and scannet.yaml.

    "decode" is fetching and decoding alone; "make" what is left to a loader where an accelerator makes the points (in
    older trees nearly all); "sample" everything on the CPU.
    """
    trees = {"this": REPOSITORY} | ({"beside": beside.resolve()} if beside else {})
    workers = {
        (name, config): _start(tree, frames.resolve(), layout, config, depth_codec)
        for name, tree in trees.items()
        for config in CONFIGS
    }
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(turns):
        for (name, config), worker in workers.items():
            for stage, each in _ask(worker, turn).items():
                if turn:  # the first loads libraries
                    seconds.setdefault((name, config, stage), []).append(each)
    for worker in workers.values():
        worker.communicate()
    rows = [
        {"tree": name, "config": config, "stage": stage, "cpu_ms_a_frame": 1000 * statistics.median(found)}
        for (name, config, stage), found in seconds.items()
    ]
    figures = {
        f"{row['tree']}_{row['config']}_{row['stage']}s_per_core_second": 1000 / row["cpu_ms_a_frame"] for row in rows
    }
    report = record("geometry", turns, figures, rows, ("torch", "numpy", "pillow", "simplejpeg"))
    if as_json:
        typer.echo(json.dumps(report))
        return
    for row in rows:
        rate = 1000 / row["cpu_ms_a_frame"]
        typer.echo(f"{row['tree']:7}{row['config']:9}{row['stage']:8}{row['cpu_ms_a_frame']:8.1f} ms {rate:8.1f}/s")


def _start(tree: Path, frames: Path, layout: str, config: str, depth_codec: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        str(Path(__file__).with_name("geometry_worker.py")),
        str(frames),
        layout,
        CONFIGS[config],
        depth_codec,
    ]
    return subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(worker: subprocess.Popen[str], turn: int) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    print(turn * FRAMES_A_TURN, FRAMES_A_TURN, file=worker.stdin, flush=True)
    return json.loads(worker.stdout.readline())


if __name__ == "__main__":
    typer.run(main)
