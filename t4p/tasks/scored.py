"""What is scored, of any task: the scores as a table, and each sample for whoever wants to look at it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from t4p.data.labelled import LabelledBatch  # loads torch


@dataclass(frozen=True)
class SheetRow:
    """One class.

    Attributes:
        values: one for each column, in [0, 1]; nan where the class is not in the data.
    """

    label: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class ScoreSheet:
    """Scores by class and their means.

    Attributes:
        protocol: by what rules, in a few words.
        columns: names of the scores.
        means: of each column, over the classes that are there.
    """

    protocol: str
    columns: tuple[str, ...]
    rows: tuple[SheetRow, ...]
    means: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """For programs: `mean` and `classes`, by the names of the columns in lower case; null for what is not there."""
        names = [column.lower() for column in self.columns]
        return {
            "protocol": self.protocol,
            "mean": _named(names, self.means),
            "classes": {row.label: _named(names, row.values) for row in self.rows},
        }


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one sample of V voxels: what was found, or what is there.

    Attributes:
        label_ids: (P,) int64 rows of the network's labels.
        scores: (P,) in [0, 1]; 1 for what is there.
        boxes: (P, 7) middle and full extents, metres, and the turn about the vertical, as `t4p.metrics.detection` has
            them, in the frame of the sample's points; of masks, their bounds.
        masks: (P, V) bool, none of them empty; None where objects are boxes.
    """

    label_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: NDArray[np.bool_] | None

    def __getitem__(self, rows: NDArray[np.bool_]) -> Objects:
        """Some of them: rows is (P,) bool."""
        masks = None if self.masks is None else self.masks[rows]
        return Objects(self.label_ids[rows], self.scores[rows], self.boxes[rows], masks)


@dataclass(frozen=True, eq=False)
class ScoredSample:
    """What a network says of one frame or scene, and what is true.

    Attributes:
        key: key of the stored sample.
        measure: name of its score: mIoU, AP50 or AP25.
        score: of this sample alone, in [0, 1]; nan where it holds nothing to score.
        points: (V, 3) float32 middles of the voxels, metres, z up, from the corner of the sample.
        predicted, truth: (V,) int64 rows of the network's labels, the truth may be IGNORED; or objects.
        counts: (K, K + 1) points by true and predicted label, `t4p.metrics.semantic.confusion`; None of objects.
        batch: its voxels as the network took them.
    """

    key: str
    measure: str
    score: float
    points: NDArray[np.float32]
    predicted: NDArray[np.int64] | Objects
    truth: NDArray[np.int64] | Objects
    counts: NDArray[np.int64] | None
    batch: LabelledBatch


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
