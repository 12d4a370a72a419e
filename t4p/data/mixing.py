"""Two samples of a dataset as one cloud (Mix3D, Nekrasov et al. 2021): which, and where the second one stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from shards.errors import ShardError
from shards.sample import Sample as StoredSample
from shards.stores.store import MissingObjectError, StoreError
from t4p.data.draws import draw_key, sample_rng
from t4p.data.fetch import Catalogue

Mixed = TypeVar("Mixed")


@dataclass(frozen=True)
class Partners:
    """Who is mixed with whom: a function of (seed, epoch, dataset, key) and of the dataset's samples, of nothing else.

    A partner is any other sample of the dataset, not one of the batch: what a rank or a loader holds depends on how
    many there are. So it is read once more, on its own; the batch keeps its size, and each of its samples its rank.

    Attributes:
        catalogue: of the samples that are trained on.
        share: of the samples that get a partner.
    """

    catalogue: Catalogue
    share: float
    seed: int

    def read(self, dataset_index: int, key: str, epoch: int) -> tuple[str, StoredSample] | None:
        """The key and the partner of a sample in an epoch; None where it stays alone, as a dataset's only one does.

        Raises:
            ShardError, StoreError: as `Catalogue.read`.
        """
        rng = sample_rng(self.seed, epoch, draw_key(dataset_index, key), "mix")
        num_samples = self.catalogue.num_samples_of(dataset_index)
        if rng.random() >= self.share or num_samples < 2:
            return None
        number = int(rng.integers(num_samples))
        found = self.catalogue.read(*self.catalogue.place(dataset_index, number))
        if found[0] == key:
            found = self.catalogue.read(*self.catalogue.place(dataset_index, (number + 1) % num_samples))
        return found


def unless_broken(mix: Callable[[], Mixed | None]) -> Mixed | None:
    """What a sample and its partner are together; None where the partner is missing, damaged or unusable.

    A sample then stays alone, for its partner is counted where its own turn comes: what is broken is the same in
    every process, and so is who stays alone.

    Args:
        mix: reads the partner and joins it with a sample that is known to be whole.

    Raises:
        StoreError: the storage failed, which says nothing of the partner.
    """
    try:
        return mix()
    except MissingObjectError:
        return None
    except StoreError:
        raise
    except (ShardError, ValueError):
        return None


def shift_between(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3,) metres that bring the middle of other points over that of these.

    Along x and y alone: heights are a feature, and floors should meet. Middles are those of bounds, which no order of
    additions changes.

    Args:
        points, others: (N, 3) and (M, 3) metres; either may be empty.
    """
    shift = np.zeros(3)
    if len(points) and len(others):
        here, there = ((each.min(axis=0) + each.max(axis=0)) / 2 for each in (points, others))
        shift[:2] = (here - there)[:2]
    return shift
