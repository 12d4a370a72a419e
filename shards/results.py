"""Writing what a command was asked for, where its user said: whole or not at all, and over nothing that is there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from shards.errors import CallError, ResultError

# What a file system says that has no hard links.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def check_result(path: Path, force: bool = False) -> None:
    """Refuse a place for a result before the work for it is done.

    Args:
        force: replace a file that is there.

    Raises:
        CallError: something is there, or no file can be.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise CallError(f"{path}: wanted the path of a file in a folder that exists, such as ./{path.name or 'result'}")
    if not force and os.path.lexists(path):
        raise _taken(path)


@contextmanager
def write_result(path: Path, force: bool = False) -> Iterator[Path]:
    """Give the result its name once it is whole, with the mode that a new file has here (the umask's).

    Args:
        force: replace a file that is there; a link is replaced, not followed.

    Yields:
        An empty file beside it with the same ending, to be written, or replaced, inside.

    Raises:
        CallError: as `check_result`, also where the file came up meanwhile.
        ResultError: it cannot be written.
    """
    check_result(path, force)
    partial = path.with_name(f".{uuid4().hex[:8]}-{path.name}")
    try:
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            os.close(descriptor)
            yield partial
            partial.chmod(mode)  # safetensors and tempfile make files for their user alone
            with partial.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut may leave the name without the bytes
            _name(partial, path, force)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        problem = str(error).replace(partial.name, path.name)  # whose name nobody knows
        raise ResultError(f"{path}: cannot be written ({problem}); make room, or name another file") from error


def _name(partial: Path, path: Path, force: bool) -> None:
    if not force:
        try:
            os.link(partial, path)  # unlike a rename it refuses a name that is taken
            return
        except FileExistsError as error:
            raise _taken(path) from error
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        if os.path.lexists(path):
            raise _taken(path)
    partial.replace(path)


def _taken(path: Path) -> CallError:
    return CallError(f"{path}: exists already; name another file, or write over it with --force")
