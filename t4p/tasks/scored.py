"""The scores of a task as a table: what `t4p evaluate` prints, writes and shows of any of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


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


def _named(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in zip(names, values, strict=True)}
