"""The class ids of ScanNet's benchmarks, by name: what files of predictions hold."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from t4p.errors import ConfigError

# The 20 classes by the names of ScanNet's evaluation scripts, each with its id among NYU's 40.
SCANNET_IDS = MappingProxyType(
    {
        "wall": 1, "floor": 2, "cabinet": 3, "bed": 4, "chair": 5, "sofa": 6, "table": 7, "door": 8, "window": 9,
        "bookshelf": 10, "picture": 11, "counter": 12, "desk": 14, "curtain": 16, "refrigerator": 24,
        "shower curtain": 28, "toilet": 33, "sink": 34, "bathtub": 36, "otherfurniture": 39,
    }
)  # fmt: skip
NO_OBJECTS = ("wall", "floor")  # classes whose instances are not scored
# The same classes as others write them: NYU's list, and the words that a text tower knows.
OTHER_NAMES = MappingProxyType({"refridgerator": "refrigerator", "other furniture": "otherfurniture"})


def scannet_ids(labels: Sequence[str], *, objects: bool = False) -> NDArray[np.int64]:
    """(K,) the id of every label.

    Args:
        objects: those of the benchmark of instances, which has 18 of the classes.

    Raises:
        ConfigError: a label is none of the classes, or two are the same one.
    """
    known = {name: number for name, number in SCANNET_IDS.items() if not (objects and name in NO_OBJECTS)}
    names = [OTHER_NAMES.get(label, label) for label in labels]
    if unknown := [label for label, name in zip(labels, names, strict=True) if name not in known]:
        raise ConfigError(
            f"{', '.join(map(repr, unknown))}: no class of ScanNet's benchmark, which has {', '.join(known)}; train "
            "with these in model.labels, or leave --submission out"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two labels are ScanNet's class {twice[0]!r}; train with one of them in model.labels")
    return np.array([known[name] for name in names], np.int64)
