"""The one way to open a file that somebody else may have put there: no pipe is waited for, no device is read."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_file(path: Path, *, follow_links: bool = True) -> BufferedReader:
    """Open an existing file to read it.

    Args:
        follow_links: whether `path` itself may be a symbolic link.

    Raises:
        OSError: there is none, it cannot be opened, or it is a pipe, a device or a folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
    # Opening a pipe would wait for somebody to write.
    flags |= getattr(os, "O_NONBLOCK", 0)
    if not follow_links:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no file but a pipe, device or folder", str(path))
    return open(descriptor, "rb")


def read_file(path: Path, max_bytes: int | None = None) -> bytes:
    """All bytes of an existing file.

    Raises:
        OSError: as open_file, or it has more than `max_bytes`.
    """
    with open_file(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size_bytes > max_bytes:
            raise OSError(errno.EFBIG, f"{size_bytes} bytes, wanted at most {max_bytes}", str(path))
        return file.read()
