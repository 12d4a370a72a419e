"""Universal checkpoints: one file per parameter, made from a checkpoint so that any number of ranks can load it.

`step_00000120.universal` stands beside `step_00000120`, holds the same `state.json`, and counts, like any checkpoint,
once its own marker is there. It can be made again at any time, so a damaged one is replaced.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from t4p.errors import CheckpointError
from t4p.train.checkpoint import STATE, first_line, free_space, verify_marker, write_marker

SUFFIX = ".universal"
PARTIAL = ".partial"


def universal_of(checkpoint: Path) -> Path:
    """Where the universal checkpoint of a checkpoint stands."""
    return checkpoint.with_name(checkpoint.name + SUFFIX)


def leftovers_of(checkpoint: Path) -> list[Path]:
    """What was made from a checkpoint and stands beside it, a conversion that was cut short included."""
    universal = universal_of(checkpoint)
    return [path for path in (universal.with_name(universal.name + PARTIAL), universal) if path.exists()]


def is_universal(directory: Path) -> bool:
    """Whether a whole checkpoint is a universal one."""
    return (directory / "zero").is_dir()


def make_universal(
    checkpoint: Path, destination: Path, convert: Callable[[Path, Path], None], say: Callable[[str], None]
) -> None:
    """Make the universal checkpoint at `destination`, unless a whole one is there. One process alone.

    The checkpoint is only read. A conversion that is cut short leaves `destination.partial`, which nobody uses and the
    next conversion replaces; a destination that is not whole is replaced too.

    Args:
        checkpoint: whole.
        convert: writes the universal files of its first argument into its second.
        say: told what happens before it does, since a large model takes minutes.

    Raises:
        CheckpointError: the files cannot be written, or the checkpoint cannot be converted.
    """
    if destination.exists():
        try:
            verify_marker(destination)
        except CheckpointError as error:
            say(f"made again, since {error}")
        else:
            return
    say(f"converting {checkpoint} for another number of ranks; all of them wait (at most 30 minutes)")
    partial = destination.with_name(destination.name + PARTIAL)
    # One folder deeper: the conversion writes a file of its own beside its output.
    made = partial / destination.name
    try:
        _remove(partial)
        made.mkdir(parents=True)
        convert(checkpoint, made)
        shutil.copy2(checkpoint / STATE, made / STATE)
        write_marker(made)
        _remove(destination)
        made.rename(destination)
        _remove(partial)
    except Exception as error:  # whatever DeepSpeed raises: every rank waits to be told
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{checkpoint}: cannot be converted for another number of ranks ({type(error).__name__}: "
            f"{first_line(error)}; {free_space(destination)}); the checkpoint is untouched. A conversion needs up to "
            f"three times its size; `t4p checkpoint convert {checkpoint} --out ELSEWHERE` writes to another file "
            "system, for train.resume=ELSEWHERE"
        ) from error


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
