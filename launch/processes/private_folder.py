"""A folder of one launch's own, and the certainty that no process which belongs to it outlives the launch."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch.errors import writing_in
from launch.processes.caretaker import CARETAKER
from launch.processes.environment import importable

# Ray's sockets lie some 65 characters below its folder, and a path of AF_UNIX ends at 107.
LONGEST_FOLDER = 40


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder for temporary files, removed afterwards.

    Raises:
        LaunchError: there is no room for one.
    """
    with writing_in("the folder for temporary files"):
        parent = tempfile.gettempdir()  # the first of some where a file can be written
    if len(parent) > LONGEST_FOLDER - len("/t4p-12345678"):
        parent = "/tmp"
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
