"""A folder of one launch's own, and the certainty that no process which belongs to it outlives the launch."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.errors import LaunchError, writing_in
from launch.processes.caretaker import CARETAKER
from launch.processes.environment import importable

# Inside the private folder, and the only one that Ray makes: it opens its folder to every user of the machine (0777).
# Nothing of ours lies in there.
RAY = "ray"
# Ray's sockets lie some 65 characters below its folder, and a path of AF_UNIX ends at 107.
LONGEST_FOLDER = 40 - len(f"/{RAY}")


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder for temporary files that only this user can enter, removed afterwards.

    Raises:
        LaunchError: there is no room for one, or anybody could put another in its place.
    """
    with writing_in("the folder for temporary files"):
        parent = tempfile.gettempdir()  # the first of some where a file can be written
    if len(parent) > LONGEST_FOLDER - len("/t4p-12345678"):
        parent = "/tmp"
    mode = os.stat(parent).st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise LaunchError(
            f"{parent}: every user of this machine may rename what lies there (its mode is {stat.S_IMODE(mode):o}, "
            f"without the sticky bit), the folder of a launch too; run `chmod +t {parent}`, or set TMPDIR to another "
            "folder"
        )
    with writing_in(parent):
        folder = Path(tempfile.mkdtemp(prefix="t4p-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def caretaker(folder: Path) -> Iterator[None]:
    """A process that ends what belongs to the folder when this one was killed and cannot."""
    process = subprocess.Popen(
        [*CARETAKER, str(folder)],
        stdin=subprocess.PIPE,  # closes when this process dies
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=importable(os.environ),
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.kill()
        process.communicate()
