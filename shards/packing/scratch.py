"""The folder in which a packer puts its shards together, and the sweeping of those whose packer was killed."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "t4p-pack-"
_LOCK = "lock"
_BEGINNING = 60.0  # seconds within which a new folder has its lock


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this process's own in TMPDIR, gone at the end; those of dead processes go at the beginning.

    Raises:
        OSError: it cannot be made.
    """
    sweep(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name, (Path(name) / "unlocked").open("wb") as lock:
        folder = Path(name)
        _try_lock(lock.fileno())  # until the process ends, however it does
        (folder / "unlocked").rename(folder / _LOCK)  # nobody sees it without its lock
        yield folder


def sweep(parent: Path) -> None:
    """Remove scratch folders of this user whose packer is gone; nothing that cannot be told for certain."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if _is_ours(folder) and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    facts = folder.lstat()
    return folder.is_dir() and not folder.is_symlink() and (os.name == "nt" or facts.st_uid == os.getuid())


def _is_abandoned(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _BEGINNING
    try:
        return _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Take the lock of a scratch folder; False while its packer lives."""
    try:
        import fcntl
    except ImportError:  # Windows: nobody can tell, so nobody sweeps
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
