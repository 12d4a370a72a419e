"""From the class ids of a dataset to the labels of a run: matched by name, never by number."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from t4p.errors import ConfigError

IGNORED = -1  # what a label index is where nothing is known, or nothing is asked
MOST_NAMED = 5  # names in a message before it says how many more there are


@dataclass(frozen=True, eq=False)
class LabelTable:
    """What the class ids of one dataset mean in a run.

    Attributes:
        names: names of the dataset's class ids, by id; empty without labels.
        label_of_id: (num_ids,) int64, the index in the run's labels, or IGNORED.
        num_labels: labels of the run.
    """

    names: tuple[str, ...]
    label_of_id: NDArray[np.int64]
    num_labels: int

    def look_up(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Labels of class ids, any shape.

        Raises:
            ValueError: an id has no name in the dataset.
        """
        if ids.size and int(ids.max()) >= len(self.label_of_id):
            raise ValueError(
                f"class id {int(ids.max())} has no name: the manifest names ids 0 to {len(self.label_of_id) - 1}; "
                "mend label_names where the dataset is packed, or the labels, and pack again"
            )
        return self.label_of_id[ids]


def build_label_table(
    names: Sequence[str], labels: Sequence[str], ignored: Sequence[str], url: str, *, unlabelled: bool = False
) -> LabelTable:
    """Match the class names of a dataset with the labels of a run.

    Args:
        names: names of the dataset's class ids, by id; a name may stand there more than once.
        labels: labels of the run, all different.
        ignored: names that are not asked for; "*" stands for every other one.
        url: place of the dataset, for messages.
        unlabelled: take a dataset without labels, too.

    Raises:
        ConfigError: the dataset has no labels, has a class that is neither a label nor ignored, or a name is both.
    """
    if both := [name for name in ignored if name in labels]:
        raise ConfigError(f"{_listed(both)} stand in model.labels and in data.ignored_labels; take them out of one")
    if not names and not unlabelled:
        raise ConfigError(
            f"{url}: has no class labels (its manifest names none), and this task needs them; give a dataset with "
            "semantic labels"
        )
    index = {label: row for row, label in enumerate(labels)}
    unknown = [name for name in dict.fromkeys(names) if name not in index and name not in ignored]
    if unknown and "*" not in ignored:
        raise ConfigError(
            f"{url}: has class(es) {_listed(unknown)}, which are neither in model.labels nor in data.ignored_labels; "
            "ignore them (['*'] ignores every class that is not in model.labels), or train with them in model.labels"
        )
    return LabelTable(
        names=tuple(names),
        label_of_id=np.array([index.get(name, IGNORED) for name in names], np.int64),
        num_labels=len(labels),
    )


def require_labels(names_of_datasets: Sequence[Sequence[str]], labels: Sequence[str], urls: Sequence[str]) -> None:
    """Refuse to learn a label that no dataset has a class for.

    Args:
        names_of_datasets: of each its class names, or the labels of boxes that were looked at. Of one with neither
            nothing is known, and it may have any label.

    Raises:
        ConfigError: names it.
    """
    if not all(names_of_datasets):
        return
    known = list(dict.fromkeys(name for names in names_of_datasets for name in names))
    if missing := [label for label in labels if label not in known]:
        near = difflib.get_close_matches(missing[0], known, n=1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known there: {_listed(known)}"
        raise ConfigError(f"{', '.join(urls)}: no class {_listed(missing)} of model.labels{hint}")


def require_a_label(found: Sequence[str], labels: Sequence[str], url: str) -> None:
    """Refuse a dataset whose boxes, of which objects are learnt, are all of other labels than those of the run.

    Args:
        found: labels of the boxes that were looked at; where there was no box, nothing is known.

    Raises:
        ConfigError: names them.
    """
    if found and not set(found) & set(labels):
        raise ConfigError(
            f"{url}: no box that was looked at is of {_listed(labels)} (model.labels); their labels are "
            f"{_listed(found)}: take these words in model.labels"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(repr(name) for name in names[:MOST_NAMED]) + more
