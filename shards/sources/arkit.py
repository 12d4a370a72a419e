"""What the apps that record ARKit share: its camera axes, and typed access to the JSON they write a frame in.

ARKit's camera has x right, y up and looks along -z; its world has y up, metres. Its depth is filled in everywhere, so
that only its confidence says what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ShardError
from shards.schema import Matrix
from shards.sources.cameras import OPENGL_FROM_OPENCV, Numbers16, numbers16
from shards.sources.raw_text import read_json

DEPTH_SCALE = 1000.0


def read_fields(path: Path) -> Mapping[str, Any]:
    """The mapping in a JSON file; ShardError where it holds something else."""
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ShardError(f"{path}: holds {type(fields).__name__}, wanted a JSON object; export the capture again")
    return fields


def numbers_of(fields: Mapping[str, Any], name: str, count: int, where: str) -> list[float]:
    """A list of so many numbers; they may be nested, row by row.

    Raises:
        ShardError: it is missing, or something else.
    """
    try:
        values = np.asarray(fields[name], np.float64).ravel().tolist()
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{where}: no {name} of {count} numbers ({error!r}); export the capture again") from error
    if len(values) != count:
        raise ShardError(f"{where}: {name} has {len(values)} numbers, wanted {count}; export the capture again")
    found: list[float] = values
    return found


def number_of(fields: Mapping[str, Any], name: str, where: str) -> float:
    """One finite number; ShardError where it is missing, or something else."""
    value = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise ShardError(f"{where}: {name} is {value!r}, wanted a number; export the capture again")
    return float(value)


def opencv_pose(world_from_camera: Matrix) -> Numbers16 | None:
    """(4, 4) world from camera of OpenGL's and ARKit's camera axes, as that of ours; None where tracking was lost."""
    turned = world_from_camera @ OPENGL_FROM_OPENCV
    turned[3] = (0.0, 0.0, 0.0, 1.0)  # some write 0.99999994
    return numbers16(turned)
