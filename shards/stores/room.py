"""How many bytes a folder may take: by its file system and, where that is memory, by the limits on memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_UNLIMITED = 1 << 60  # cgroup v1 says "none" as a number of about this size


def allowed_bytes(folder: Path, root: Path = Path("/")) -> int:
    """Half of what the file system of `folder` leaves and, in memory, of what the groups of this process may take.

    What lies in the folder already counts as left.

    Args:
        root: where /proc and /sys are.
    """
    status = os.statvfs(folder)
    own = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                own += entry.stat(follow_symlinks=False).st_size
    room = status.f_bavail * status.f_frsize + own
    if _file_system(folder, root) in ("tmpfs", "ramfs"):
        room = min([room, *_memory_limits(root)])
    return room // 2


def _file_system(folder: Path, root: Path) -> str:
    """The kind of file system that a folder is on, as the system calls it; "" where it does not say."""
    where, best, kind = os.path.realpath(folder), "", ""
    with suppress(OSError):
        for line in (root / "proc/self/mounts").read_text(errors="replace").splitlines():
            _, place, this, *_ = line.split(" ")
            inside = where == place or where.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(best):
                best, kind = place, this
    return kind


def _memory_limits(root: Path) -> Iterator[int]:
    """What each of the control groups of this process may take, of versions 1 and 2, where it is limited."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")
            # In a container the path may be the host's: what is limited is then the top.
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                with suppress(OSError, ValueError):
                    file = root / "sys/fs/cgroup" / top / str(group).strip("/") / name
                    limit = int(file.read_text())
                    if limit < _UNLIMITED:
                        yield limit
