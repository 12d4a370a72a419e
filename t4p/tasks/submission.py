"""Predictions as ScanNet's benchmark takes them: a text for every scene, a line for every vertex.

Labels: `SCENE.txt` holds the id of every vertex. Instances: `SCENE.txt` holds a line `predicted_masks/SCENE_000.txt ID
SCORE` for every mask, whose file holds 1 for its vertices and 0 for the others. The vertices are those of the stored
scene, all of them, in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from shards.doors.text import shown
from shards.errors import CallError, ResultError
from shards.schema import unescape_id
from t4p.errors import ConfigError, DataError
from t4p.metrics.scannet import scannet_ids

MASKS = "predicted_masks"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Submission:
    """A folder of predictions that grows scene by scene."""

    def __init__(self, folder: Path, ids: NDArray[np.int64], asked: Path) -> None:
        """
        Args:
            folder: exists.
            ids: (K,) the benchmark's id of every label of the network.
            asked: what the folder will be called, for what is said of it.
        """
        self._folder = folder
        self._asked = asked
        self._ids = ids
        self._scenes: set[str] = set()

    def add_labels(self, key: str, label_of_point: NDArray[np.int64]) -> None:
        """Write what was said of a scene.

        Args:
            key: key of the stored scene.
            label_of_point: (N,) rows of the network's labels.

        Raises:
            DataError, ResultError: as `add_masks`.
        """
        text = "\n".join(map(str, self._ids[label_of_point].tolist()))
        file = self._file_of(key)
        with _writing(self._folder, self._asked):
            file.write_text(f"{text}\n", encoding="ascii")

    def add_masks(
        self, key: str, masks: NDArray[np.bool_], class_ids: NDArray[np.int64], scores: NDArray[np.floating]
    ) -> None:
        """Write the objects that were found in a scene.

        Args:
            key: key of the stored scene.
            masks, class_ids, scores: (P, N), (P,) rows of the network's labels, and (P,).

        Raises:
            DataError: the name of the scene is no name of a file, or another scene has it.
            ResultError: they cannot be written.
        """
        file = self._file_of(key)
        lines = []
        with _writing(self._folder, self._asked):
            (self._folder / MASKS).mkdir(exist_ok=True)
            for number, (mask, class_id, score) in enumerate(zip(masks, class_ids, scores, strict=True)):
                name = f"{MASKS}/{file.stem}_{number:03d}.txt"
                digits = np.full((len(mask), 2), ord("\n"), np.uint8)
                digits[:, 0] = ord("0") + mask
                (self._folder / name).write_bytes(digits.tobytes())
                # 9 digits: a float32, and no new ties
                lines.append(f"{name} {self._ids[class_id]} {float(score):.9g}\n")
            file.write_text("".join(lines), encoding="ascii")

    def _file_of(self, key: str) -> Path:
        scene = unescape_id(key.split("/", 1)[0])
        if not _FILE_NAME.fullmatch(scene):
            raise DataError(
                f"scene {shown(scene)!r}: a submission has a file of this name, and ScanNet's names hold letters, "
                "digits, _ and - only; pack the scene under another name"
            )
        if scene in self._scenes:
            raise DataError(
                f"scene {shown(scene)!r} comes twice, and a submission has one file for it; name data.shards that hold "
                "it once"
            )
        self._scenes.add(scene)
        return self._folder / f"{scene}.txt"


def check_folder(folder: Path) -> None:
    """Refuse a place for a submission before the work for it is done.

    Raises:
        CallError: something is there, or no folder can be.
    """
    if folder.exists() or folder.is_symlink():
        raise CallError(f"{folder}: exists already; name a new folder for the submission")
    if not folder.parent.is_dir():
        raise CallError(f"{folder}: {folder.parent} is no folder; name a new one in a folder that exists")


@contextmanager
def write_submission(
    folder: Path, labels: Sequence[str], finds: Literal["labels", "masks", "boxes"]
) -> Iterator[Submission]:
    """A folder of predictions, which gets its name once it is whole.

    Args:
        labels: of the network.
        finds: what its task finds.

    Raises:
        CallError: as `check_folder`.
        ConfigError: the benchmark takes no boxes, or has no class of a label's name.
        ResultError: it cannot be written.
    """
    check_folder(folder)
    if finds == "boxes":
        raise ConfigError(
            "ScanNet's benchmark takes labels and masks, and this network finds boxes; leave --submission out"
        )
    ids = scannet_ids(labels, objects=finds == "masks")
    partial = folder.with_name(f".{uuid4().hex[:8]}-{folder.name}")
    try:
        with _writing(partial, folder):
            partial.mkdir()
        yield Submission(partial, ids, folder)
        with _writing(partial, folder):
            partial.rename(folder)
    finally:
        rmtree(partial, ignore_errors=True)


@contextmanager
def _writing(partial: Path, folder: Path) -> Iterator[None]:
    """Around what is written: a file system that does not take it is told of the folder that was asked for."""
    try:
        yield
    except OSError as error:
        problem = str(error).replace(partial.name, folder.name)
        raise ResultError(f"{folder}: cannot be written ({problem}); make room, or name another folder") from error
