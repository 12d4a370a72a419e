"""The errors of launching."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from t4p.errors import RunError


class LaunchError(RunError):
    """A launched job failed, or its Ray did. The message names the rank and the cause. Exit status 1."""


@contextmanager
def writing_in(folder: str | Path, setting: str = "TMPDIR") -> Iterator[None]:
    """Turn an error of the disk into one that names the folder.

    Args:
        setting: what says which folder it is.

    Raises:
        LaunchError: the disk is full, or the folder cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"{folder}: cannot be written ({error}); make room there, or set {setting} to another folder"
        ) from error
