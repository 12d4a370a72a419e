"""Keeps what a benchmark found: one line of JSON in benchmarks/results/."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


def record(
    topic: str, steps: int, figures: dict[str, Any], rows: list[dict[str, Any]], packages: tuple[str, ...]
) -> dict[str, Any]:
    """Append a report to results/TOPIC.jsonl, stamped with commit and date.

    Args:
        steps: what the benchmark was asked for.
        figures: what is quoted.
        rows: what they were computed from.
        packages: whose versions matter.

    Returns:
        The report, without the stamp.
    """
    report = {
        "figures": figures,
        "rows": rows,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1, "load": os.getloadavg()},
        "versions": {name: version(name) for name in packages},
    }
    results = REPOSITORY / "benchmarks" / "results" / f"{topic}.jsonl"
    results.parent.mkdir(exist_ok=True)
    stamp = {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "steps": steps}
    with results.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(stamp | report) + "\n")
    return report


@cache
def commit() -> str:
    """That the working tree is of, as the first call finds it; `-dirty` where files differ from it, results aside."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip()
