"""The environments of processes that are started here."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

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


def importable(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which `python -m launch...` finds these very packages, wherever it is started.

    `python -m` looks into the current folder first, where a plain folder `shards/` passes for a package until a real
    one comes up on the path. Those of an editable install (`pip install -e .`) never do: what finds them is asked last.
    """
    root = str(Path(__file__).resolve().parents[2])
    if root == sysconfig.get_path("purelib"):  # installed for good: real packages, and they stay behind Python's own
        return dict(environment)
    given = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": f"{root}{os.pathsep}{given}" if given else root}


def environment_of_one() -> dict[str, str]:
    """The caller's environment, as for a process alone in the world."""
    return importable({name: value for name, value in os.environ.items() if name not in FOREIGN_VARIABLES})
