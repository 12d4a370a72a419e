"""Few labels: a share of the scenes, or a few labelled points of each, drawn once for a run. No torch.

ScanNet's data-efficient benchmark (Hou et al. 2021) calls them limited reconstructions and limited annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from t4p.config.data import LabelledDataConfig
from t4p.data.draws import draw_key, sample_rng, sample_seed
from t4p.data.fetch import Catalogue
from t4p.data.labels import IGNORED

MOST_NAMED = 8  # scenes, in a sentence


def training_catalogue(data: LabelledDataConfig, seed: int, say: Callable[[str], None] = lambda _: None) -> Catalogue:
    """What a fine-tuning trains on: all of its datasets, or `data.label_fraction` of their scenes.

    Args:
        say: told in a sentence each what is left out.

    Raises:
        CallError: datasets are missing, or hold frames where `data.labels_per_scene` counts points of scenes.
        ShardError: one is damaged or unreachable.
    """
    catalogue = Catalogue(data.urls, data.weights)
    if data.labels_per_scene is not None:
        catalogue.require_scenes("data.labels_per_scene", ", or take fewer with data.label_fraction")
        say(f"data.labels_per_scene is {data.labels_per_scene}: all other labels of a scene are ignored (seed {seed})")
    if data.label_fraction == 1:
        return catalogue
    there = catalogue.scenes()
    chosen = [choose_scenes(names, data.label_fraction, seed, index) for index, names in enumerate(there)]
    part = catalogue.of_scenes(chosen)
    for url, names, all_names in zip(catalogue.urls, chosen, there, strict=True):
        named = [*sorted(names)[:MOST_NAMED], *(["..."] if len(names) > MOST_NAMED else [])]
        say(
            f"data.label_fraction is {data.label_fraction:g}: {len(names)} of {len(all_names)} scenes of {url} are "
            f"trained on (seed {seed}): {', '.join(named)}"
        )
    return part


def choose_scenes(scenes: Iterable[str], fraction: float, seed: int, dataset_index: int = 0) -> frozenset[str]:
    """A share of the scenes of a dataset, at least one; each share of a seed holds all smaller ones.

    Args:
        scenes: names, in any order.
        fraction: in (0, 1].
    """
    by_hash = sorted(scenes, key=lambda name: sample_seed(seed, 0, draw_key(dataset_index, name), "label_fraction"))
    return frozenset(by_hash[: max(1, round(fraction * len(by_hash)))])


def keep_labels(label_of_point: NDArray[np.int64], count: int, seed: int, key: str) -> NDArray[np.int64]:
    """The labels of `count` labelled points of a scene, drawn uniformly; IGNORED elsewhere.

    Smaller counts of a seed are kept by larger ones too. Nothing says which classes: rare ones may have no point.

    Args:
        label_of_point: (N,) index of the run's labels, or IGNORED.
        key: what the draw belongs to, as `draw_key` gives it.
    """
    labelled = np.flatnonzero(label_of_point != IGNORED)
    words = sample_rng(seed, 0, key, "labels_per_scene").random(len(labelled))
    kept = labelled[np.argsort(words, kind="stable")[:count]]
    thinned = np.full_like(label_of_point, IGNORED)
    thinned[kept] = label_of_point[kept]
    return thinned
