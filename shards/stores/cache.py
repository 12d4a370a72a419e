"""Samples that a node has read, in files of a folder that only its user can enter: what a fetcher writes loaders read.

An entry is consecutive samples of one shard, with what is needed to cut them apart. Its name is made of the hash of the
shard's tar and of which samples they are, so it means the same to every run that reads the dataset, and never something
else. It is written under another name and renamed: it is there whole or not at all, whoever is killed. What was removed
is read from storage again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from shards.errors import CallError
from shards.stores.room import allowed_bytes
from shards.stores.store import StoreError

RUNS = "runs"  # folder, beside the entries, of what runs keep there while they last
_ENDED_AFTER = 86400.0  # seconds without a sign of it, after which a run is over
_SUFFIX = ".samples"
_INCOMING = ".incoming-"
_ABANDONED_AFTER = 600.0  # seconds without a byte, after which the writer of a file is dead
_HEADER = struct.Struct("<8sQ")  # magic, bytes of the rows; the rows follow, then the samples
_MAGIC = b"t4pcach1"


@lru_cache(maxsize=1 << 14)  # as many blocks as a run has open, of a few hundred bytes each
def entry_name(tar_sha256: bytes, start: int, stop: int) -> str:
    """The file name of samples [start, stop) of the tar of this hash."""
    return hashlib.sha256(tar_sha256 + struct.pack("<QQ", start, stop)).hexdigest()[:40] + _SUFFIX


class Entry:
    """An entry that is open: it can be read even when it was removed meanwhile. Close it after use.

    Attributes:
        rows: what the writer gave along, to cut the samples apart.
    """

    def __init__(self, fd: int) -> None:
        """Take over an open file; ValueError where it is no entry."""
        self._fd = fd
        magic, num_bytes = _HEADER.unpack(os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size))
        self.rows = os.pread(fd, num_bytes, _HEADER.size) if magic == _MAGIC and num_bytes < 1 << 30 else b""
        if magic != _MAGIC or len(self.rows) != num_bytes:
            raise ValueError("no entry of a cache")
        self._first = _HEADER.size + num_bytes

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` of the samples, fewer where the entry ends."""
        return os.pread(self._fd, length, self._first + offset)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


class Incoming:
    """An entry that is being written: its samples in any order of their bytes, by several threads."""

    def __init__(self, folder: Path, name: str, rows: bytes, num_bytes: int) -> None:
        """Begin a file; OSError where that does not go."""
        self._path, self._final = folder / f"{_INCOMING}{uuid4().hex}", folder / name
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._first = _HEADER.size + len(rows)
        try:
            os.ftruncate(self._fd, self._first + num_bytes)  # it counts as what it will be
            self._write(_HEADER.pack(_MAGIC, len(rows)) + rows, 0)
        except OSError:
            self.abandon()
            raise

    def write(self, pieces: Sequence[bytes | memoryview], offset: int) -> None:
        """Put bytes at `offset` of the samples; OSError, as where the disk is full."""
        for piece in pieces:
            self._write(piece, self._first + offset)
            offset += len(piece)

    def finish(self) -> None:
        """From here on the entry is there."""
        os.close(self._fd)
        os.replace(self._path, self._final)

    def abandon(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError):
            os.close(self._fd)
        self._path.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._fd, view, offset)
            view, offset = view[done:], offset + done


@dataclass(frozen=True)
class NodeCache:
    """The entries in one folder. Picklable; any number of processes and runs use it at once.

    Attributes:
        folder: where they are.
        limit_bytes: of all entries, whoever wrote them.
    """

    folder: Path
    limit_bytes: int

    def get(self, name: str) -> Entry | None:
        """The entry of that name, which counts as a use of it; None where there is none."""
        path = self.folder / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            entry = Entry(fd)
        except (ValueError, OSError):  # cut short by a file system that lost power
            os.close(fd)
            self.discard(name)
            return None
        self.touch(name)
        return entry

    def touch(self, name: str) -> bool:
        """Count a use of an entry; whether there is one."""
        try:
            os.utime(self.folder / name)
        except OSError:
            return False
        return True

    def begin(self, name: str, rows: bytes, num_bytes: int) -> Incoming:
        """Begin an entry of so many bytes of samples; OSError where that does not go, as where the disk is full."""
        return Incoming(self.folder, name, rows, num_bytes)

    def discard(self, name: str) -> None:
        """Remove an entry; no error when there is none."""
        with suppress(OSError):
            (self.folder / name).unlink()

    def used_bytes(self) -> int:
        """Of all entries."""
        return sum(entry.size for entry in self._scan())

    def make_room(self, num_bytes: int, needed: Collection[str]) -> int:
        """Remove what was not used for longest until so many bytes more are within the limit.

        Args:
            num_bytes: that are to come.
            needed: names of entries that this run still needs: they stay.

        Returns:
            Bytes of all entries that are left: where they leave too little room, all of them are needed.
        """
        found = self._scan()
        used = sum(entry.size for entry in found)
        for entry in sorted(found, key=lambda entry: entry.used):
            if used + num_bytes <= self.limit_bytes:
                break
            if entry.name not in needed and not entry.name.startswith(_INCOMING):
                self.discard(entry.name)
                used -= entry.size
        return used

    def sweep(self) -> None:
        """Remove what writers and runs left that were killed."""
        for entry in self._scan():
            if entry.name.startswith(_INCOMING) and entry.used < time.time() - _ABANDONED_AFTER:
                self.discard(entry.name)
        with suppress(OSError), os.scandir(self.folder / RUNS) as entries:
            for left in entries:
                with suppress(OSError):
                    if left.stat(follow_symlinks=False).st_mtime < time.time() - _ENDED_AFTER:
                        os.unlink(left)

    def _scan(self) -> list[_File]:
        found = []
        with suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) or entry.name.startswith(_INCOMING):
                    with suppress(OSError):  # removed meanwhile
                        status = entry.stat(follow_symlinks=False)
                        found.append(_File(entry.name, status.st_size, status.st_mtime))
        return found


@dataclass(frozen=True)
class _File:
    name: str
    size: int
    used: float


def open_cache(folder: Path | None, limit_bytes: int | None, say: Callable[[str], None]) -> NodeCache:
    """The cache of this user in `folder`, made where there is none.

    Args:
        folder: None for one in memory where that is large enough, else in the user's folder for such things.
        limit_bytes: None for as much as is allowed: half of what the file system and the limits of memory leave.
        say: told, once, what was chosen other than expected.

    Raises:
        CallError: the folder is not this user's alone.
        StoreError: it cannot be made.
    """
    if folder is None:
        memory = Path("/dev/shm") / f"t4p-cache-{os.getuid()}"
        folder = memory
        if not memory.parent.is_dir() or allowed_bytes(memory.parent) < _SMALLEST_IN_MEMORY:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "text4point" / "samples"
            say(f"/dev/shm is too small here for a cache of samples: it is on disk, {folder} (data.cache_dir)")
    _make_private(folder)
    allowed = allowed_bytes(folder)
    if limit_bytes is not None and limit_bytes > allowed:
        say(f"data.cache_bytes: {limit_bytes} is more than half of what {folder} allows; {allowed} it is")
    cache = NodeCache(folder, allowed if limit_bytes is None else min(limit_bytes, allowed))
    cache.sweep()
    return cache


_SMALLEST_IN_MEMORY = 2 << 30


def _make_private(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(folder)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise CallError(f"{folder}: is no folder; give another data.cache_dir") from error
        raise StoreError(f"{folder}: cannot be made ({error.strerror}); give another data.cache_dir") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise CallError(
            f"{folder}: a cache of samples is one user's alone, a folder of mode 0700 that is no link; `chmod 700` it, "
            "or give another data.cache_dir"
        )
