"""What a probe of `t4p doctor` found, on its way from the process that made it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

# "skipped" is what nobody asked for.
State = Literal["works", "missing", "broken", "skipped"]


@dataclass(frozen=True)
class Finding:
    """What is there and works, or what is wrong and the next move.

    Attributes:
        found: versions and numbers, or what is wrong.
        fix: what closes the gap: a command, or the next move in words; "" where a probe knows none.
        figures: the numbers, named with their units.
    """

    state: State
    found: str
    fix: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def find_out(probe: Callable[..., Finding], *arguments: str) -> Finding:
    """The finding of a probe; what it raises is one too."""
    try:
        return probe(*arguments)
    except Exception as error:
        # An ImportError of ours explains another, and has its own idea of a fix.
        cause = error.__cause__ if isinstance(error, ImportError) and error.__cause__ is not None else error
        if isinstance(cause, ModuleNotFoundError):
            return Finding("missing", f"{cause.name} is not installed")
        return Finding("broken", f"{type(cause).__name__}: {str(cause).strip() or 'without a message'}")


def write_finding(path: Path, finding: Finding) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(asdict(finding)), encoding="utf-8")
    partial.replace(path)


def read_finding(path: Path) -> Finding | None:
    """None where the probe ended before it found anything."""
    return Finding(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
