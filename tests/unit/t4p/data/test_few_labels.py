"""Few labels: shares of scenes and counts of points lie within larger ones, are the same in every epoch, and told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from shards.errors import CallError
from shards.packing.pack import pack
from t4p.config.data import LabelledAugmentConfig, LabelledDataConfig
from t4p.config.network import SemanticModelConfig
from t4p.data.course import Course, CourseSettings
from t4p.data.fetch import Catalogue
from t4p.data.few_labels import choose_scenes, keep_labels, training_catalogue
from t4p.data.labelled import build_label_recipe
from t4p.data.labels import IGNORED
from t4p.data.ranks import Nodes
from t4p.data.stream import StreamSettings, TrainingStream

NUM_ROOMS, NUM_FRAMES = 10, 3
MODEL = SemanticModelConfig(labels=("wall", "floor", "chair", "table"), point_features=("one",), voxel_size=0.1)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten rooms of three frames each, in several tars that hold no whole number of rooms."""
    folder = str(tmp_path_factory.mktemp("frames") / "shards")
    sizes = f"rooms={NUM_ROOMS},frames={NUM_FRAMES},width=48,height=36"
    pack("synthetic", f"seed=3,{sizes}", folder, shard_size_bytes=40_000)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("scenes") / "shards")
    pack("synthetic-scenes", "seed=3,rooms=3,frames=3,width=48,height=36", folder)
    return folder


@pytest.mark.parametrize("seed", range(20))
def test_shares_of_scenes_are_exact_and_lie_within_larger_ones(seed: int) -> None:
    names = [f"room-{number}" for number in range(150)]
    taken = [choose_scenes(names, share, seed) for share in (0.001, 0.01, 0.05, 0.1, 0.2, 1.0)]
    assert [len(part) for part in taken] == [1, 2, 8, 15, 30, 150]
    assert all(small < large for small, large in pairwise(taken))
    assert choose_scenes(reversed(names), 0.1, seed) == taken[3]
    assert choose_scenes(names, 0.1, seed + 1) != taken[3]
    assert choose_scenes(names, 0.1, seed, dataset_index=1) != taken[3]


@pytest.mark.parametrize("seed", range(20))
def test_points_of_a_scene_are_so_many_and_lie_within_more(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(-1, 3, 3000)
    labels[labels < 0] = IGNORED
    before = labels.copy()
    kept = [np.flatnonzero(keep_labels(labels, n, seed, "a/whole") != IGNORED) for n in (20, 50, 100, 200, 10**6)]
    assert [len(part) for part in kept] == [20, 50, 100, 200, np.count_nonzero(labels != IGNORED)]
    assert all(set(few) <= set(many) for few, many in pairwise(kept))
    thinned = keep_labels(labels, 50, seed, "a/whole")
    assert np.array_equal(thinned[kept[1]], labels[kept[1]])
    assert not np.array_equal(thinned, keep_labels(labels, 50, seed, "b/whole"))
    assert np.array_equal(labels, before)


def test_points_are_drawn_uniformly() -> None:
    labels = np.zeros(40, np.int64)
    counts = sum((keep_labels(labels, 10, seed, "a") == 0).astype(int) for seed in range(2000))
    assert counts.sum() == 20_000
    assert (np.abs(counts - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75)).all()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5])
def test_a_part_of_a_catalogue_has_all_samples_of_its_scenes_and_no_other(frames: str, share: float) -> None:
    said: list[str] = []
    data = LabelledDataConfig(shards=(frames,), label_fraction=share)
    part, whole = training_catalogue(data, 7, said.append), Catalogue([frames])
    (names,) = whole.scenes()
    chosen = choose_scenes(names, share, 7)
    wanted = [
        whole.key(*whole.place(0, number))
        for number in range(whole.num_samples)
        if whole.key(*whole.place(0, number)).partition("/")[0] in chosen
    ]
    places = [part.place(0, number) for number in range(part.num_samples_of(0))]
    assert [part.key(*place) for place in places] == [part.read(*place)[0] for place in places] == wanted
    assert part.num_samples == part.samples_per_shard.sum() == NUM_FRAMES * len(chosen)
    assert (part.bytes_per_shard > 0).all()
    assert part.bytes_per_shard.sum() < whole.bytes_per_shard.sum()
    assert part.shards_sha256 == whole.shards_sha256
    assert part.terms == (replace(whole.terms[0], num_samples=NUM_FRAMES * len(chosen)),)
    assert [key for key, _ in part.few_of(0, 2)] == [wanted[0], wanted[-1]]
    assert said[0].startswith(f"data.label_fraction is {share:g}: {len(chosen)} of {NUM_ROOMS} scenes of {frames} are ")
    assert sorted(chosen)[0] in said[0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_a_part_as_they_share_a_whole(frames: str, world_size: int) -> None:
    part = training_catalogue(LabelledDataConfig(shards=(frames,), label_fraction=0.4), 7)
    settings = CourseSettings(7, 4, 10_000, 4, 1, Nodes.equal(world_size, 1))
    course = Course(part.pools, settings)
    alone = Course(part.pools, CourseSettings(7, 4, 10_000, 4, 1, Nodes((0,))))
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(3):  # an epoch: twelve frames
        batch = course.micro_batch(step, 0)
        assert np.array_equal(batch.samples, alone.micro_batch(step, 0).samples)
        seen.update(map(tuple, batch.samples.tolist()))
    assert set(seen.values()) == {1}
    assert len(seen) == part.num_samples


def test_every_dataset_of_a_mixture_gives_its_share(frames: str, scenes: str) -> None:
    data = LabelledDataConfig(
        shards=({"url": frames, "weight": 1}, {"url": scenes, "weight": 3}),  # type: ignore[arg-type]
        label_fraction=0.34,
    )
    part = training_catalogue(data, 0)
    assert [part.num_samples_of(index) for index in range(2)] == [3 * NUM_FRAMES, 1]
    assert part.dataset_index(part.place(1, 0)[0]) == 1
    assert [pool.weight for pool in part.pools] == [1, 3]


def test_labelled_points_stay_the_same_in_every_epoch_and_only_training_loses_any(scenes: str) -> None:
    data = LabelledDataConfig(shards=(scenes,), labels_per_scene=20)
    said: list[str] = []
    catalogue = training_catalogue(data, 3, said.append)
    assert said == ["data.labels_per_scene is 20: all other labels of a scene are ignored (seed 3)"]

    def labels_of(count: int | None, epoch: int) -> torch.Tensor:
        recipe = build_label_recipe(
            catalogue,
            data,
            MODEL,
            MODEL.labels,
            ("*",),
            augment=LabelledAugmentConfig(),
            seed=3,
            labels_per_scene=count,
        )
        key, stored = catalogue.read(0, 1)
        sample = recipe.make(stored, 0, key, epoch)
        assert (sample.label_of_voxel != IGNORED).sum() <= (count or 10**9)
        return sample.label_of_point

    first, later, all_of_them = labels_of(20, 0), labels_of(20, 5), labels_of(None, 0)
    assert torch.equal(first, later)
    kept = first != IGNORED
    assert kept.sum() == 20
    assert torch.equal(first[kept], all_of_them[kept])
    assert (all_of_them != IGNORED).sum() > 200


def test_points_of_a_scene_are_not_counted_in_frames(frames: str) -> None:
    with pytest.raises(CallError, match=r"holds frames, and data\.labels_per_scene is of whole .*data\.label_fraction"):
        training_catalogue(LabelledDataConfig(shards=(frames,), labels_per_scene=20), 0)


def test_a_stream_of_a_part_reads_what_any_number_of_loaders_reads(frames: str) -> None:
    data = LabelledDataConfig(shards=(frames,), label_fraction=0.5)
    catalogue = training_catalogue(data, 1)
    recipe = build_label_recipe(catalogue, data, MODEL, MODEL.labels, ("*",), augment=data.augment, seed=1)

    def read(num_workers: int, rank: int = 0, world_size: int = 1) -> list[tuple[str, ...]]:
        settings = StreamSettings(num_workers, 4, 10_000, 2, 1, rank, Nodes.equal(world_size, 1), 1, 0.0)
        return [batch.keys for batch in TrainingStream(catalogue, recipe, settings).batches(0, 4)]

    whole = read(0)
    assert read(1) == whole
    halves = [read(0, rank, 2) for rank in range(2)]
    assert [sorted(one + other) for one, other in zip(*halves, strict=True)] == [sorted(keys) for keys in whole]
