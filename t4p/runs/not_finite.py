"""What a run folder notes of a loss, a gradient or weights that were not finite: `not_finite.jsonl`, a line for each.

`{"step": 3, "what": "the loss is nan", "dead_end": "9f..."}`: a run ended there. `dead_end` is the sha256 of the marker
of the checkpoint of the step before, "" if there is none: a loss follows from the weights that it is taken of, so
whoever goes on from that checkpoint comes to the same. `{"resumed": 2, "changes": ["train.learning_rate: 1 -> 0.1"]}`:
what a run went on with, and from which step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.doors.json_text import parse_json
from t4p.errors import CheckpointError

NOT_FINITE = "not_finite.jsonl"


def note_not_finite(run_dir: Path, step: int, what: str, dead_end: str) -> None:
    """Note that a run ended.

    Args:
        dead_end: sha256 of the marker of the checkpoint from which this comes again; "" where there is none.

    Raises:
        OSError: the file cannot be written.
    """
    _add(run_dir, {"step": step, "what": what, "dead_end": dead_end})


def note_changes(run_dir: Path, step: int, changes: Sequence[str]) -> None:
    """Note with which settings the run goes on from a step.

    Raises:
        OSError: the file cannot be written.
    """
    _add(run_dir, {"resumed": step, "changes": list(changes)})


def was_not_finite_after(run_dir: Path, step: int) -> bool:
    """Whether a run in this folder met something that was not finite on its way from a checkpoint of this step."""
    return any(note["step"] > step for note in _ends(run_dir))


def dead_ends(run_dir: Path) -> frozenset[str]:
    """The sha256 of the marker of every checkpoint that nothing can go on from."""
    return frozenset(str(note["dead_end"]) for note in _ends(run_dir)) - {""}


def _add(run_dir: Path, note: Mapping[str, Any]) -> None:
    with (run_dir / NOT_FINITE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(note) + "\n")


def _ends(run_dir: Path) -> Iterator[Mapping[str, Any]]:
    try:
        lines = (run_dir / NOT_FINITE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{run_dir / NOT_FINITE}: cannot be read ({error}), so it is not known from where this run can go on; mend "
            "its permissions, or move it away to go on from the newest checkpoint"
        ) from error
    for line in lines:
        try:
            note = parse_json(line)
        except ValueError:  # torn, when the disk was full
            continue
        if isinstance(note, dict) and isinstance(note.get("step"), int) and "dead_end" in note:
            yield note
