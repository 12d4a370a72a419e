"""Opening logs and notes, in folders where somebody else may write too: never through a link, never a pipe."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, Literal

FLAGS = {
    "rb": os.O_RDONLY,
    "ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "wb": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
}


def open_own(path: Path, mode: Literal["rb", "ab", "wb"]) -> IO[bytes]:
    """Open a file that this program wrote, or is about to.

    Whoever puts a link in its place would have another file copied into a log, or written over.

    Raises:
        OSError: it is a link, a pipe or a device, or cannot be opened. A pipe that nobody reads makes nobody wait.
    """
    descriptor = os.open(path, FLAGS[mode] | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return os.fdopen(descriptor, mode)
