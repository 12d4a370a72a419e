"""A folder of one launch's own, and the certainty that no process which belongs to it outlives the launch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from launch.errors import writing_in
from launch.processes import CARETAKER

# Ray's sockets lie some 65 characters below its folder, and a path of AF_UNIX ends at 107.
LONGEST_FOLDER = 40
# What describes the place of a process in a world of several, or another world.
FOREIGN_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RAY_ADDRESS",
)


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


def importable(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python -m launch...` finds these very packages, wherever it is started.

    `python -m` looks into the current folder first, where a plain folder `shards/` passes for a package until a real
    one comes up on the path. Those of an editable install (`pip install -e .`) never do: what finds them is asked last.
    """
    root = str(Path(__file__).resolve().parent.parent)
    if root == sysconfig.get_path("purelib"):  # installed for good: real packages, and they stay behind Python's own
        return dict(environment)
    given = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": f"{root}{os.pathsep}{given}" if given else root}


def environment_of_one() -> dict[str, str]:
    """The caller's environment, as for a process alone in the world."""
    return importable({name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES})
