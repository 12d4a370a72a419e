"""What a look at a few frames of a scene tells: real sets, right and with every usual fault, with and without poses.

Of each set eight frames are taken as `t4p shards pack` takes them, the fault is put into what is told of them, and the
verdict is compared with what is right: `caught` (refused), `warned` (suspicious), `unknown` (nothing wrong shows, and
nothing can be said of what is at fault), `missed` (called fine). The row `right` has the false alarms. CPU seconds are
those of the judgement; frames are decoded before.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from record import REPOSITORY, record

sys.path.insert(0, str(REPOSITORY / "tests"))

from real_sets import POSED
from shard_faults import FAULTS, judged, looked_at

from shards.plausible.facts import View

OF_POSES = ("inverted", "flipped", "inverted and flipped", "mirrored", "millimetres", "centimetres")


def outcome(views: list[View], fault: str) -> tuple[str, str, float]:
    """In a word, with the likely cause, and CPU seconds."""
    begun = time.process_time()
    findings = judged(views)
    seconds = time.process_time() - begun
    for verdict, word in (("cannot be right", "caught"), ("suspicious", "warned")):
        if causes := [finding.cause for finding in findings if finding.verdict == verdict]:
            return word, "; ".join(causes), seconds
    proved = {finding.what for finding in findings if finding.verdict == "fine"}
    if fault == "right":
        return "fine", "", seconds
    # Depth of a usual size proves nothing without poses: a shelf at 2 m may be one at 0.4 m.
    return ("missed" if "poses" in proved else "unknown"), "", seconds


def main(
    data: Annotated[Path, typer.Option(help="the real sets, as their README describes them")] = REPOSITORY.parent
    / "shared"
    / "data",
    keep: Annotated[bool, typer.Option(help="append to results/plausible.jsonl")] = True,
) -> None:
    sets = {name: looked_at(load(data)) for name, load in POSED.items()}
    rows, seconds = [], []
    for with_poses in (True, False):
        print(f"\n{'with' if with_poses else 'without'} poses\n{'':22}" + "".join(f"{name:13}" for name in sets))
        for fault in ("right", *FAULTS):
            if not with_poses and fault in OF_POSES:
                continue
            words = []
            for name, views in sets.items():
                changed = [FAULTS[fault](view) if fault in FAULTS else view for view in views]
                if not with_poses:
                    changed = [replace(view, world_from_camera=None) for view in changed]
                word, cause, spent = outcome(changed, fault)
                words.append(word)
                seconds.append(spent)
                rows.append({"set": name, "fault": fault, "poses": with_poses, "outcome": word, "cause": cause})
            print(f"{fault:22}" + "".join(f"{word:13}" for word in words))
    counts = {
        kind: dict(Counter(row["outcome"] for row in rows if row["poses"] == poses and row["fault"] != "right"))
        for kind, poses in (("with_poses", True), ("without_poses", False))
    }
    alarms = [row for row in rows if row["fault"] == "right" and row["outcome"] != "fine"]
    figures = {
        **counts,
        "false_alarms": len(alarms),
        "cpu_seconds_median": round(statistics.median(seconds), 3),
        "cpu_seconds_most": round(max(seconds), 3),
    }
    print(f"\n{figures}")
    if keep:
        record("plausible", len(rows), figures, rows, ("numpy", "pillow"))


if __name__ == "__main__":
    typer.run(main)
