"""Which checkpoints a run deletes, and how, so that a killed deletion leaves nothing that looks whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from t4p.errors import CheckpointError
from t4p.runs.checkpoint import check_sizes, checkpoint_name, checkpoints_in, step_of
from t4p.runs.universal import leftovers_of

DELETED = ".deleted"


def expired(whole: Iterable[int], written: int, keep: int) -> list[int]:
    """The steps whose checkpoints are no longer wanted, oldest first.

    Checkpoints of later steps than `written` were there when the run resumed from an earlier one, so something was
    wrong with them: they neither count among those kept nor are they deleted.

    Args:
        whole: steps with a marker and all their files.
        written: the step whose checkpoint was written just now: whole beyond doubt, and never deleted.
        keep: how many stay, `written` included; at least 1.
    """
    earlier = sorted(step for step in set(whole) if step < written)
    return earlier[: max(0, len(earlier) - (keep - 1))]


def delete_expired(checkpoints: Path, written: int, keep: int) -> list[str]:
    """Delete what `expired` names, with the universal checkpoints beside it, and what a killed deletion left.

    Returns:
        A sentence for each thing that could not be deleted: no reason to end a run.
    """
    problems = _delete(sorted(checkpoints.glob(f"step_*{DELETED}")))
    whole = [step_of(directory) for directory in checkpoints_in(checkpoints) if _is_whole(directory)]
    for step in expired(whole, written, keep):
        directory = checkpoints / checkpoint_name(step)
        # The universal checkpoint goes first: it can be made again as long as its checkpoint stands.
        problems += _delete([*leftovers_of(directory), directory])
    return problems


def _delete(folders: Sequence[Path]) -> list[str]:
    """Delete in this order, up to the first that cannot be; each loses its name before its first file."""
    for folder in folders:
        try:
            doomed = folder if folder.name.endswith(DELETED) else folder.rename(f"{folder}{DELETED}")
            shutil.rmtree(doomed)
        except OSError as error:
            return [f"{folder}: could not be deleted ({error})"]
    return []


def _is_whole(directory: Path) -> bool:
    try:
        check_sizes(directory)
    except CheckpointError:
        return False
    return True
