"""Universal checkpoints: one file per parameter, made from a checkpoint so that any number of ranks can load it.

`step_00000120.universal` stands beside `step_00000120`, holds the same `state.json`, and counts, like any checkpoint,
once its own marker is there. `made_from.txt` in it is the sha256 of the marker of the checkpoint that it was made from:
a step may be saved twice, and only the second save may be gone on from. It can be made again at any time, so one that
is damaged or was made from something else is replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from shards.doors.files import read_file
from shards.doors.json_text import MAX_BYTES
from t4p.errors import CheckpointError
from t4p.runs.checkpoint import STATE, first_line, free_space, marker_sha256, verify_marker, write_marker

SUFFIX = ".universal"
PARTIAL = ".partial"
MADE_FROM = "made_from.txt"


def universal_of(checkpoint: Path) -> Path:
    """Where the universal checkpoint of a checkpoint stands."""
    return checkpoint.with_name(checkpoint.name + SUFFIX)


def leftovers_of(checkpoint: Path) -> list[Path]:
    """What was made from a checkpoint and stands beside it, conversions that were cut short included."""
    universal = universal_of(checkpoint)
    return [*partials_of(universal), *([universal] if universal.exists() else [])]


def partials_of(universal: Path) -> list[Path]:
    """Conversions that were to become this universal checkpoint and were cut short, or are still going on."""
    beside = universal.parent.iterdir() if universal.parent.is_dir() else iter(())
    return sorted(path for path in beside if path.name.startswith(universal.name + PARTIAL))


def is_universal(directory: Path) -> bool:
    """Whether a whole checkpoint is a universal one."""
    return (directory / "zero").is_dir()


def made_from(universal: Path, checkpoint: Path) -> bool:
    """Whether a universal checkpoint says that it was made from this checkpoint, as it is now."""
    try:
        note = read_file(universal / MADE_FROM, MAX_BYTES).decode()
    except (OSError, ValueError):
        return False
    return note == marker_sha256(checkpoint)


def make_universal(
    checkpoint: Path, destination: Path, convert: Callable[[Path, Path], None], say: Callable[[str], None]
) -> None:
    """Make the universal checkpoint at `destination`, unless a whole one of it is there. One process alone.

    The checkpoint is only read. A conversion that is cut short leaves `destination.partial-*`, which nobody uses; a
    destination that is not whole, or was made from something else, is replaced. Two conversions at once do not meet.

    Args:
        checkpoint: whole.
        convert: writes the universal files of its first argument into its second.
        say: told what happens before it does, since a large model takes minutes.

    Raises:
        CheckpointError: the files cannot be written, or the checkpoint cannot be converted or holds what none does.
    """
    if destination.exists():
        problem = _problem(destination, checkpoint)
        if problem is None:
            return
        say(f"made again, since {problem}")
    for leftover in partials_of(destination):
        say(f"{leftover}: a conversion that was cut short, or one that is going on; delete it if none is")
    say(f"converting {checkpoint} for another number of ranks; all of them wait")
    # A name of its own: a run and `t4p checkpoint convert` may convert the same checkpoint at once.
    partial = destination.with_name(f"{destination.name}{PARTIAL}-{uuid4().hex[:8]}")
    # One folder deeper: the conversion writes a file of its own beside its output.
    made = partial / destination.name
    try:
        made.mkdir(parents=True)
        note = marker_sha256(checkpoint)
        convert(checkpoint, made)
        shutil.copy2(checkpoint / STATE, made / STATE)
        (made / MADE_FROM).write_text(note)
        write_marker(made)
        # Another conversion may have ended meanwhile, and a run be reading what it made.
        if not destination.exists() or _problem(destination, checkpoint) is not None:
            _remove(destination)
            made.rename(destination)
        _remove(partial)
    except CheckpointError:  # says itself what is wrong
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except Exception as error:  # whatever DeepSpeed raises: every rank waits to be told
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{checkpoint}: cannot be converted for another number of ranks ({type(error).__name__}: "
            f"{first_line(error)}; {free_space(destination)}); the checkpoint is untouched. A conversion needs up to "
            f"three times its size; `t4p checkpoint convert {checkpoint} --out ELSEWHERE` writes to another file "
            "system, for train.resume=ELSEWHERE"
        ) from error


def _problem(universal: Path, checkpoint: Path) -> str | None:
    """Why a universal checkpoint cannot stand for a checkpoint; None if it can. Reads all of it."""
    try:
        verify_marker(universal)
    except CheckpointError as error:
        return str(error)
    if not made_from(universal, checkpoint):
        return f"{universal}: was not made from {checkpoint} as it is now"
    return None


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
