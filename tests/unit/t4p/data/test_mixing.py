"""Two scenes as one cloud: the same for any number of ranks and loaders, nothing lost, every object where it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from shards.errors import ShardError
from shards.packing.pack import pack
from shards.sample import Sample as StoredSample
from shards.scene import Scene
from shards.stores.store import MissingObjectError, StoreError
from t4p.config.data import LabelledAugmentConfig, LabelledDataConfig
from t4p.config.network import SemanticModelConfig
from t4p.data.boxes import points_inside
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledSample, LabelRecipe, build_label_recipe
from t4p.data.labels import IGNORED
from t4p.data.mixing import Partners, shift_between
from t4p.data.objects import NONE, ObjectRecipe
from t4p.data.ranks import Nodes
from t4p.data.stream import StreamSettings, TrainingStream

NUM_ROOMS = 5
MODEL = SemanticModelConfig(
    labels=("chair", "table", "bed", "wardrobe", "stool", "lamp", "sofa"),
    point_features=("one", "color", "height"),
    voxel_size=0.06,
)
MIXED = LabelledAugmentConfig(mix=1.0)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = str(tmp_path_factory.mktemp("mixing") / "shards")
    pack("synthetic-scenes", f"seed=5,rooms={NUM_ROOMS},frames=4,width=64,height=48", folder)
    return Catalogue([folder])


def recipe_of(catalogue: Catalogue, augment: LabelledAugmentConfig | None) -> LabelRecipe:
    data = LabelledDataConfig(shards=catalogue.urls)
    return build_label_recipe(catalogue, data, MODEL, MODEL.labels, ("*",), augment=augment, seed=2)


def test_partners_are_drawn_from_all_other_samples_with_the_probability_that_is_asked(catalogue: Catalogue) -> None:
    keys = [catalogue.key(*catalogue.place(0, number)) for number in range(NUM_ROOMS)]
    partners = Partners(catalogue, 0.5, 2)
    found = [(key, partners.read(0, key, epoch)) for epoch in range(40) for key in keys]
    pairs = [(key, partner[0]) for key, partner in found if partner is not None]
    assert len(pairs) == pytest.approx(0.5 * len(found), abs=4 * np.sqrt(0.25 * len(found)))
    assert {(one, other) for one, other in pairs} == {(one, other) for one in keys for other in keys if one != other}
    again = partners.read(0, found[0][0], 0)
    assert (again is None) == (found[0][1] is None)
    alone = catalogue.of_scenes([{keys[0].partition("/")[0]}])
    assert Partners(alone, 1.0, 2).read(0, keys[0], 0) is None


def test_a_mixed_sample_has_the_points_and_labels_of_both_one_over_the_other(catalogue: Catalogue) -> None:
    mixed, single = recipe_of(catalogue, MIXED), recipe_of(catalogue, LabelledAugmentConfig())
    key, stored = catalogue.read(0, 0)
    for epoch in range(3):
        partner = mixed.partner(0, key, epoch)
        assert partner is not None
        parts = [single.make(stored, 0, key, epoch), single.make(partner[1], 0, partner[0], epoch)]
        sample = mixed.make(stored, 0, key, epoch)
        labels = torch.cat([part.label_of_point for part in parts])
        assert torch.equal(sample.label_of_point, labels)
        points = (sample.voxel_coords[sample.voxel_of_point].numpy() + 0.5) * MODEL.voxel_size
        halves = np.split(points, [len(parts[0].label_of_point)])
        middles = [(half.min(0) + half.max(0)) / 2 for half in halves]
        assert np.abs(middles[0] - middles[1])[:2].max() < 1.01 * MODEL.voxel_size
        assert abs(halves[0][:, 2].min() - halves[1][:, 2].min()) < 2 * MODEL.voxel_size + 0.05, "floors meet"
        # Each half is as it is alone, up to where the grid lies.
        for half, part in zip(halves, parts, strict=True):
            own = (part.voxel_coords[part.voxel_of_point].numpy() + 0.5) * MODEL.voxel_size
            assert np.abs((half - half.min(0)) - (own - own.min(0))).max() < 2.01 * MODEL.voxel_size
        counts = [len(part.voxel_coords) for part in parts]
        assert max(counts) < len(sample.voxel_coords) < sum(counts)


@pytest.mark.parametrize("boxes_of", ["axis_aligned", "oriented"])
def test_a_mixed_sample_has_the_instances_groups_and_boxes_of_both(catalogue: Catalogue, boxes_of: str) -> None:
    objects = [
        ObjectRecipe(recipe_of(catalogue, augment), MODEL.labels, "own", boxes_of)  # type: ignore[arg-type]
        for augment in (MIXED, LabelledAugmentConfig())
    ]
    key, stored = catalogue.read(0, 0)
    partner = objects[0].labels.partner(0, key, 1)
    assert partner is not None
    mixed = objects[0].make(stored, 0, key, 1)
    parts = [objects[1].make(stored, 0, key, 1), objects[1].make(partner[1], 0, partner[0], 1)]
    assert torch.equal(mixed.label_of_box, torch.cat([part.label_of_box for part in parts]))
    assert torch.allclose(mixed.boxes[:, 3:], torch.cat([part.boxes[:, 3:] for part in parts]), atol=1e-6)
    own = mixed.instance_of_point[: len(parts[0].instance_of_point)]
    assert torch.equal(own, parts[0].instance_of_point)
    others = mixed.instance_of_point[len(own) :]
    assert torch.equal(others != NONE, parts[1].instance_of_point != NONE)
    assert set(own.tolist()) & set(others.tolist()) <= {NONE}, "no instance is of both rooms"
    # Every object's points lie in a box of its label.
    points = (mixed.labelled.voxel_coords[mixed.labelled.voxel_of_point].numpy() + 0.5) * MODEL.voxel_size
    labels = mixed.labelled.label_of_point.numpy()
    held = np.zeros(len(points), bool)
    for box, label in zip(mixed.boxes.double().numpy(), mixed.label_of_box.tolist(), strict=True):
        box[3:6] += 0.1
        held |= points_inside(points, box) & (labels == label)
    assert held[labels != IGNORED].mean() > 0.97
    # A group stays in its room, wherever a voxel is of one room alone.
    group_of_point = mixed.group_of_voxel[mixed.labelled.voxel_of_point].numpy()
    first, second = np.split(group_of_point, [len(own)])
    assert len(np.intersect1d(first, second)) < len(mixed.instance_of_group)
    assert len(mixed.instance_of_group) > max(len(part.instance_of_group) for part in parts)


@dataclass(frozen=True)
class _Given(Partners):
    """A partner that is given: a sample, or what reading it raises."""

    given: Scene | Exception

    def read(self, dataset_index: int, key: str, epoch: int) -> tuple[str, StoredSample] | None:
        if isinstance(self.given, Exception):
            raise self.given
        return "other/whole", self.given


@pytest.mark.parametrize("kind", ["labels", "objects"])
def test_a_sample_stays_alone_beside_a_broken_partner_and_is_not_spared_what_is_its_own(
    catalogue: Catalogue, kind: str
) -> None:
    key, stored = catalogue.read(0, 0)
    assert isinstance(stored, Scene)
    plain = recipe_of(catalogue, LabelledAugmentConfig())

    def make(partners: Partners | None, sample: Scene) -> LabelledSample:
        recipe = replace(plain, partners=partners)
        if kind == "labels":
            return recipe.make(sample, 0, key, 1)
        return ObjectRecipe(recipe, MODEL.labels, "own", "axis_aligned").make(sample, 0, key, 1).labelled

    no_number = replace(stored, points=np.full_like(stored.points, np.nan))
    far = replace(stored, points=np.concatenate([stored.points[1:], np.float32([[1e6, 0, 0]])]))
    no_name = replace(stored, semantic=np.full_like(stored.semantic, 200))
    no_labels = replace(stored, semantic=None, instance=None)
    broken = (no_number, far, no_name, no_labels, ShardError("damaged"), MissingObjectError("gone"))
    alone = make(None, stored)
    for given in (*broken, stored):
        made = make(_Given(catalogue, 1.0, 2, given), stored)
        assert torch.equal(made.voxel_features, alone.voxel_features) == (given is not stored)
    with pytest.raises(StoreError, match="refused"):
        make(_Given(catalogue, 1.0, 2, StoreError("refused")), stored)
    for own in (far, no_name, no_labels):
        with pytest.raises((ShardError, ValueError)):
            make(_Given(catalogue, 1.0, 2, stored), own)


def test_ranks_and_loaders_change_no_mixed_sample(catalogue: Catalogue) -> None:
    recipe = recipe_of(catalogue, LabelledAugmentConfig(mix=0.6, elastic=0.5, position_jitter=0.005))

    def read(num_workers: int, world_size: int) -> dict[tuple[int, str], tuple[torch.Tensor, torch.Tensor]]:
        found = {}
        for rank in range(world_size):
            settings = StreamSettings(num_workers, 4, 10_000, 4, 1, rank, Nodes.equal(world_size, 1), 2, 0.0)
            for step, batch in enumerate(TrainingStream(catalogue, recipe, settings).batches(0, 3)):
                for index, key in enumerate(batch.keys):
                    own = batch.voxel_coords[:, 0] == index
                    found[step, key] = batch.voxel_coords[own, 1:], batch.voxel_features[own]
        return found

    wanted = read(0, 1)
    assert len(wanted) == 12
    for other in (read(2, 1), read(0, 3)):
        assert other.keys() == wanted.keys()
        for place, tensors in wanted.items():
            assert all(torch.equal(*pair) for pair in zip(tensors, other[place], strict=True)), place


def test_bent_and_shaken_points_keep_their_labels_and_other_draws_do_not_move(catalogue: Catalogue) -> None:
    key, stored = catalogue.read(0, 1)
    plain = recipe_of(catalogue, LabelledAugmentConfig())
    cloud = plain.move(plain.read(stored, 0, key), 0, key, 3)
    for changes, least, most in (({"elastic": 1.0}, 0.05, 1.0), ({"position_jitter": 0.005}, 0.004, 0.0201)):
        changed = replace(plain, augment=LabelledAugmentConfig(**changes))
        other = changed.move(changed.read(stored, 0, key), 0, key, 3)
        moves = (other.points - cloud.points).abs()
        assert least < moves.square().mean().sqrt() < moves.max() < most
        assert torch.equal(other.label_of_point, cloud.label_of_point)
        assert changed.place(0, key, 3).grid_shift == plain.place(0, key, 3).grid_shift
        assert not torch.equal(other.points, changed.move(changed.read(stored, 0, key), 0, key, 4).points)
    rarely = replace(plain, augment=LabelledAugmentConfig(elastic=0.3))
    bent = [
        not torch.equal(rarely.move(cloud, 0, key, epoch).points, plain.move(cloud, 0, key, epoch).points)
        for epoch in range(60)
    ]
    assert 6 < sum(bent) < 32


def test_middles_meet_along_the_horizontal_and_nothing_moves_to_an_empty_cloud() -> None:
    points, others = np.array([[0.0, 0, 0], [2, 4, 1]]), np.array([[10.0, 10, 5], [10, 12, 9]])
    assert shift_between(points, others).tolist() == [-9, -9, 0]
    assert shift_between(points, others[:0]).tolist() == shift_between(points[:0], others).tolist() == [0, 0, 0]
