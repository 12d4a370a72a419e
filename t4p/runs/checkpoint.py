"""Checkpoints as files: names, the marker that makes one count, and which one to resume from.

A checkpoint is a directory `step_00000120`. DeepSpeed's save is not atomic, so a directory counts only once
`COMPLETE.json`, written last, lists every file with its size and hash. What has no marker is never resumed from, and
never deleted: it is moved aside when its name is needed. A file that the marker does not list is never opened: reading
one could make objects of it that nobody saved, so the whole checkpoint is refused instead.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from shards.doors.files import open_file, read_file
from shards.doors.json_text import MAX_BYTES, parse_json
from t4p.errors import CheckpointError
from t4p.runs.not_finite import dead_ends
from t4p.runs.terms import UNKNOWN, Terms

MARKER = "COMPLETE.json"
STATE = "state.json"
FORMAT_VERSION = 1
# What DeepSpeed names its files: the module's state, and at stages 1 to 3 each rank's part of the optimizer.
MODEL_STATES = "*_model_states.pt"
OPTIMIZER_STATES = "*_optim_states.pt"
UNIVERSAL_STATES = "zero/*"
_WANTED = "name a run folder, or one of the checkpoints that `t4p checkpoint list RUN_DIR` shows"
# Seconds that a rank waits for a file of another one to show up: a network file system may be slow to.
SHARED_FOLDER_PATIENCE = 10.0


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint says of itself, in `state.json`.

    Attributes:
        step: optimizer steps taken; the position in the data follows from it.
        world_size: ranks that wrote it.
        config: the resolved configuration, as dumped.
        shards_sha256: hash of the shard table of each training dataset.
        order: version of the order of samples.
        towers_sha256: hash of the frozen towers' weights, which are not in the checkpoint; the config has their names.
        versions: versions of Python and the packages that made it.
        terms: what it was trained on, and under which terms.
    """

    step: int
    world_size: int
    config: Mapping[str, Any]
    shards_sha256: tuple[str, ...]
    towers_sha256: str
    versions: Mapping[str, str]
    order: int = 1  # version 0.1.0 did not say
    terms: Terms = UNKNOWN  # nor these


def checkpoint_name(step: int) -> str:
    """The directory name for a step."""
    return f"step_{step:08d}"


def step_of(directory: Path) -> int:
    """The step in the name of a checkpoint's directory."""
    return int(directory.name.removeprefix("step_"))


def write_state(directory: Path, state: CheckpointState) -> None:
    """Write `state.json`; the marker comes later."""
    write_atomically(directory / STATE, json.dumps(asdict(state), indent=1))


def read_state(directory: Path) -> CheckpointState:
    """Read `state.json` of a checkpoint that `verify_marker` has passed.

    Raises:
        CheckpointError: it cannot be read, or has other fields.
    """
    path = directory / STATE
    try:
        fields = parse_json(read_file(path, MAX_BYTES))
        fields = {**fields, "shards_sha256": tuple(fields["shards_sha256"])}
        state = CheckpointState(**{**fields, "terms": Terms.parse(fields.get("terms", {}))})
        _check_kinds(state)
        return state
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); wanted the state of a checkpoint of this version, name an older one"
        ) from error


def _check_kinds(state: CheckpointState) -> None:
    """Refuse values that a state never has, before somebody computes with them.

    Raises:
        ValueError: names the first.
    """
    for name, least in (("step", 0), ("world_size", 1), ("order", 1)):
        value = getattr(state, name)
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}, wanted a whole number of at least {least}")
    texts = {"towers_sha256": (state.towers_sha256,), "shards_sha256": state.shards_sha256}
    for name, values in texts.items():
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{name} is {getattr(state, name)!r}, wanted text")
    for name in ("config", "versions"):
        if not isinstance(getattr(state, name), dict):
            raise ValueError(f"{name} is {getattr(state, name)!r}, wanted a mapping")


def await_files(directory: Path, wanted: Mapping[str, int]) -> None:
    """Wait until a folder shows so many files of each pattern, which are there: the marker lists what can be seen.

    A network file system may show one node an old listing for some seconds after another has written.

    Raises:
        CheckpointError: they did not show up in SHARED_FOLDER_PATIENCE.
    """
    deadline = time.monotonic() + SHARED_FOLDER_PATIENCE
    for pattern, count in wanted.items():
        while (found := len(list(directory.glob(pattern)))) != count:
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    f"{directory}: shows {found} files {pattern} after {SHARED_FOLDER_PATIENCE:g} s, wanted {count}, "
                    "one of each rank. It has no marker, so it will not be used; see that every node writes to the "
                    "same folder and start again: the run goes on from the last whole one, if there is one"
                )
            time.sleep(0.1)


def write_marker(directory: Path) -> None:
    """Declare the checkpoint whole: every file's size and sha256, written last and in one move."""
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(directory).as_posix()] = {"size_bytes": path.stat().st_size, "sha256": digest}
    write_atomically(directory / MARKER, json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1))
    _sync_folder(directory.parent)


def check_sizes(directory: Path) -> Mapping[str, str]:
    """Check that a checkpoint has its marker, and every file its size; quick, since nothing large is read.

    Returns:
        The sha256 that each file should have.

    Raises:
        CheckpointError: there is no marker or one of another format, a file is missing, cannot be looked at or is not
            as long as the marker says, the folder holds something that the marker does not list, or what it lists is
            not all that such a checkpoint consists of.
    """
    try:
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such checkpoint; {_WANTED}")
        marker = parse_json(read_file(directory / MARKER, MAX_BYTES))
        found_version, files = marker["format_version"], marker["files"]
        sizes = {str(name): int(file["size_bytes"]) for name, file in files.items()}
        digests = {str(name): str(file["sha256"]) for name, file in files.items()}
    except FileNotFoundError:
        if not checkpoints_in(directory.parent) and not (directory / STATE).exists():
            raise CheckpointError(f"{directory}: neither a checkpoint nor a run folder; {_WANTED}") from None
        raise CheckpointError(
            f"{directory}: no {MARKER}, so it was not written to its end and cannot be used; "
            "name an older one, or the run folder for its newest whole one"
        ) from None
    except OSError as error:
        raise _unreadable(directory / MARKER, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{directory / MARKER}: not a marker ({error}); name an older checkpoint") from error
    if found_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory / MARKER}: its format_version is {found_version}, wanted {FORMAT_VERSION}; "
            "use the version of text4point that wrote it, or name another checkpoint"
        )
    _refuse_unlisted(directory, sizes)
    for name, wanted in sizes.items():
        path = directory / name
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != wanted:
            found = "missing" if size is None else f"{size} bytes"
            raise CheckpointError(f"{path}: {found}, wanted {wanted} bytes; name an older checkpoint")
    _require_parts(directory, sizes)
    return digests


def parts_of_ranks(zero_stage: int, world_size: int) -> Mapping[str, int]:
    """How many files of each pattern a checkpoint has where each rank writes its own part."""
    parts = {1: [OPTIMIZER_STATES], 2: [OPTIMIZER_STATES], 3: [OPTIMIZER_STATES, MODEL_STATES]}
    return dict.fromkeys(parts.get(zero_stage, []), world_size)


def _refuse_unlisted(directory: Path, listed: Collection[str]) -> None:
    """Refuse what lies in a checkpoint and is none of the files that its marker lists, and lists of other places.

    Raises:
        CheckpointError: names it, or it cannot be looked for.
    """
    for name in listed:
        if (path := PurePosixPath(name)).is_absolute() or ".." in path.parts:
            raise CheckpointError(
                f"{directory / MARKER}: lists {name!r}, which is not inside of it; name another checkpoint"
            )
    folders = {str(parent) for name in listed for parent in PurePosixPath(name).parents}

    def fail(error: OSError) -> None:
        raise _unreadable(Path(error.filename or directory), error) from error

    for folder, subfolders, files in os.walk(directory, onerror=fail):
        here = Path(folder).relative_to(directory)
        for name in (*files, *subfolders):
            found = (here / name).as_posix()
            if found not in (folders if name in subfolders else {MARKER, *listed}):
                raise CheckpointError(
                    f"{directory / found}: lies in the checkpoint, and {MARKER} does not list it, so the run that "
                    "wrote the checkpoint did not save it; move it away, or name another checkpoint"
                )


def _require_parts(directory: Path, listed: Collection[str]) -> None:
    """Refuse a marker that lists less than what such a checkpoint consists of.

    Raises:
        CheckpointError: names what it does not list, or the state cannot be read.
    """
    wanted = {STATE: 1, MODEL_STATES: 1}
    if STATE in listed:
        state = read_state(directory)
        if any(fnmatchcase(name, UNIVERSAL_STATES) for name in listed):
            wanted[UNIVERSAL_STATES] = 1
        else:
            try:
                wanted |= parts_of_ranks(int(state.config["train"]["zero_stage"]), state.world_size)
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"{directory / STATE}: its configuration is of another version of text4point "
                    f"({type(error).__name__}: {error}); use the version that wrote it "
                    f"({state.versions.get('text4point')}), or name another checkpoint"
                ) from error
    for pattern, count in wanted.items():
        found = sum(fnmatchcase(name, pattern) for name in listed)
        if found < count:
            raise CheckpointError(
                f"{directory / MARKER}: lists {found} file(s) {pattern}, wanted {count}: the checkpoint is not all "
                "there; name an older checkpoint"
            )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    """A disk that fails and a file of somebody else are damage too: an older checkpoint may be readable."""
    return CheckpointError(f"{path}: cannot be read ({error}); name an older checkpoint, or make it readable")


def verify_marker(directory: Path) -> None:
    """Check that a checkpoint is whole, by reading all of it.

    Raises:
        CheckpointError: as check_sizes, or a file cannot be read or is not what the marker says.
    """
    for name, wanted in check_sizes(directory).items():
        path = directory / name
        try:
            with open_file(path) as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise _unreadable(path, error) from error
        if found != wanted:
            raise CheckpointError(f"{path}: its sha256 is not the one in {MARKER}; name an older checkpoint")


def checkpoints_in(checkpoints: Path) -> list[Path]:
    """The directories that are named as checkpoints, whole or not, by step."""
    named = [path for path in checkpoints.glob("step_*") if re.fullmatch(r"step_\d{8,}", path.name)]
    return sorted(named, key=step_of)


def newest_checkpoint(
    checkpoints: Path, check: Callable[[Path], object] = verify_marker, below: int | None = None
) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run that something can go on from, and what was passed over.

    Args:
        checkpoints: `checkpoints/` of a run folder.
        check: raises CheckpointError for what is not whole: `verify_marker`, or `check_sizes` for a quick look.
        below: of an earlier step than this.

    Returns:
        The directory or None, and a sentence for each newer one that does not count.
    """
    passed_over = []
    stuck = dead_ends(checkpoints.parent)
    for directory in reversed(checkpoints_in(checkpoints)):
        if below is not None and step_of(directory) >= below:
            continue
        try:
            check(directory)
            if stuck and marker_sha256(directory) in stuck:
                raise CheckpointError(
                    f"{directory}: the step after it was not finite, and comes to the same at any learning rate"
                )
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return directory, passed_over
    return None, passed_over


def newest_of_run(run_dir: Path, check: Callable[[Path], object] = verify_marker) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run folder, and what was passed over; None where it is no run folder.

    Raises:
        CheckpointError: a run folder has none.
    """
    checkpoints = run_dir / "checkpoints"
    if (run_dir / MARKER).exists() or not checkpoints.is_dir():
        return None, []
    newest, passed_over = newest_checkpoint(checkpoints, check)
    if newest is None:
        reasons = "".join(f"\n  {sentence}" for sentence in passed_over)
        raise CheckpointError(
            f"{run_dir}: a run folder without a whole checkpoint; name another one, or let its run save one{reasons}"
        )
    return newest, passed_over


def as_checkpoint(named: Path, say: Callable[[str], None]) -> Path:
    """A checkpoint as it was named; of a run folder the newest whole one, by its marker and the sizes of its files.

    Args:
        say: told which one is taken, and what was passed over.

    Raises:
        CheckpointError: a run folder has none.
    """
    newest, passed_over = newest_of_run(named, check_sizes)
    for sentence in passed_over:
        say(f"passed over: {sentence}")
    if newest is None:
        return named
    say(f"{named}: a run folder, of which {newest.name} is taken, its newest whole checkpoint")
    return newest


def marker_sha256(checkpoint: Path) -> str:
    """What stands for a checkpoint, as it is now: the marker holds the hash of every other file.

    Raises:
        CheckpointError: the marker cannot be read.
    """
    try:
        return hashlib.sha256(read_file(checkpoint / MARKER, MAX_BYTES)).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{checkpoint / MARKER}: cannot be read ({error}); name another checkpoint") from error


def make_room(directory: Path) -> Path | None:
    """Move a leftover without a marker out of the way; returns where it went, None if there was nothing."""
    if not directory.exists():
        return None
    number = 0
    while (aside := directory.with_name(f"{directory.name}.incomplete-{number}")).exists():
        number += 1
    directory.rename(aside)
    return aside


def free_space(folder: Path) -> str:
    """A clause about the bytes left on a file system; the folder may not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(existing).free / 1e6:,.1f} MB are free there"


def first_line(error: Exception) -> str:
    """The first line of an error's message: torch's go on with a stack of C++ calls."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_atomically(path: Path, text: str) -> None:
    """Write a small text file so that it is either whole or not there, also after a power cut."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk, as fsync does for the bytes of a file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
