from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from shards.errors import ShardError
from shards.scene import Scene
from shards.sources.options import SourceOptions
from shards.sources.synthetic import label_names, read, scan
from shards.synthetic.cloud import make_scene
from t4p.config.data import LabelledAugmentConfig
from t4p.data.boxes import points_inside
from t4p.data.labelled import LabelRecipe
from t4p.data.labels import IGNORED, build_label_table
from t4p.data.objects import NONE, ObjectRecipe, ObjectSample, number_instances

LABELS = ("chair", "table", "bed", "wardrobe", "stool", "lamp")
VOXEL_SIZE = 0.06
KEY = "room/whole"


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_scene(11, 0, 6, 64, 48, "synthetic-scenes", "room")


def recipe_of(augment: LabelledAugmentConfig | None = None, **others: object) -> ObjectRecipe:
    table = build_label_table(label_names(None), LABELS, ("*",), "rooms")
    labels = LabelRecipe((table,), 1, 10.0, True, VOXEL_SIZE, 2, ("one",), augment, 0)
    return ObjectRecipe(labels, LABELS, **others)


def points_of(sample: ObjectSample) -> np.ndarray:
    """(N, 3) metres from the corner: the middle of the voxel of every point."""
    return (sample.labelled.voxel_coords[sample.labelled.voxel_of_point].numpy() + 0.5) * VOXEL_SIZE


def test_an_instance_is_a_pair_of_a_label_and_an_id():
    labels = torch.tensor([0, 0, 1, 1, IGNORED, 1, 0])
    of_point, label_of_instance = number_instances(labels, np.array([7, 7, 7, 0, 7, 2, 3], np.uint16))
    assert of_point.tolist() == [1, 1, 3, NONE, NONE, 2, 0]
    assert label_of_instance.tolist() == [0, 0, 1, 1]
    nothing, no_labels = number_instances(labels, None)
    assert set(nothing.tolist()) == {NONE}
    assert not len(no_labels)


@pytest.mark.parametrize("groups_of", ["own", "none"])
def test_voxels_and_groups_are_of_the_instance_of_most_of_their_points(room, groups_of):
    sample = recipe_of(groups_of=groups_of).make(room, 0, KEY, 0)
    assert len(sample.label_of_instance) > 1
    of_point = sample.instance_of_point.numpy()
    found = sample.instance_of_voxel[sample.labelled.voxel_of_point].numpy()
    labels = np.append(sample.label_of_instance.numpy(), IGNORED)
    agree = labels[found] == sample.labelled.label_of_point.numpy()
    assert agree[of_point != NONE].mean() > 0.9
    group_of_voxel = sample.group_of_voxel.numpy()
    assert np.array_equal(np.unique(group_of_voxel), np.arange(len(sample.instance_of_group)))
    of_group = sample.instance_of_group.numpy()[group_of_voxel]
    assert (of_group == sample.instance_of_voxel.numpy()).mean() > (0.9 if groups_of == "own" else 0.9999)
    assert set(of_group) - {NONE} == set(range(len(sample.label_of_instance)))


def test_groups_are_the_same_in_every_epoch(room):
    recipe = recipe_of(LabelledAugmentConfig(), groups_of="own")
    epochs = [recipe.make(room, 0, KEY, epoch) for epoch in range(2)]
    again = recipe_of(LabelledAugmentConfig(), groups_of="own").make(room, 0, KEY, 1)
    assert not torch.equal(epochs[0].labelled.voxel_coords, epochs[1].labelled.voxel_coords)
    assert torch.equal(epochs[1].group_of_voxel, again.group_of_voxel)


def test_given_groups_are_those_of_the_dataset(room):
    recipe = recipe_of(groups_of="given")
    with pytest.raises(ShardError, match=r"room/whole: has no over-segmentation .* set model\.groups=own"):
        recipe.make(replace(room, segments=None), 0, KEY, 0)
    halves = (room.points[:, 0] > np.median(room.points[:, 0])).astype(np.uint32) * 7
    sample = recipe.make(replace(room, segments=halves), 0, "other/whole", 0)
    assert len(sample.instance_of_group) == 2
    of_point = sample.group_of_voxel[sample.labelled.voxel_of_point].numpy()
    assert (of_point == (halves > 0)).mean() > 0.98


@pytest.mark.parametrize("boxes_of", ["axis_aligned", "oriented"])
@pytest.mark.parametrize("augment", [None, LabelledAugmentConfig()], ids=["as recorded", "augmented"])
def test_a_box_holds_the_points_of_its_object_wherever_they_are_moved(room, boxes_of, augment):
    recipe = recipe_of(augment, boxes_of=boxes_of)
    for epoch in range(3):
        sample = recipe.make(room, 0, KEY, epoch)
        points, boxes = points_of(sample), sample.boxes.double().numpy()
        assert len(boxes) == len(sample.label_of_box) > 1
        held = np.zeros(len(points), bool)
        for box, label in zip(boxes, sample.label_of_box.tolist(), strict=True):
            box[3:6] += 0.1  # half a voxel on either side, and the sensor's noise
            held |= points_inside(points, box) & (sample.labelled.label_of_point.numpy() == label)
        asked = sample.labelled.label_of_point.numpy() != IGNORED
        assert held[asked].mean() > 0.97
        assert (boxes[:, 6] == 0).all() == (boxes_of == "axis_aligned")


def test_a_frame_has_the_objects_that_it_sees():
    (ref, *_) = scan("seed=11,rooms=1,frames=2", SourceOptions())
    frame = read(ref)
    sample = recipe_of(groups_of="none", boxes_of="oriented").make(frame, 0, KEY, 0)
    points, boxes = points_of(sample), sample.boxes.double().numpy()
    boxes[:, 3:6] += 0.16
    for row, label in enumerate(sample.label_of_instance.tolist()):
        own = points[(sample.instance_of_voxel[sample.labelled.voxel_of_point] == row).numpy()]
        inside = max(
            points_inside(own, box).mean() for box, of in zip(boxes, sample.label_of_box, strict=True) if of == label
        )
        assert inside > 0.9
    assert len(sample.label_of_instance)


def test_boxes_of_the_dataset_stand_in_only_where_nobody_numbered_instances(room):
    recipe = recipe_of(boxes_of="axis_aligned")
    nothing_seen = replace(room, instance=np.zeros_like(room.instance))
    assert len(recipe.make(nothing_seen, 0, KEY, 0).boxes) == 0
    unnumbered = recipe.make(replace(room, instance=None), 0, KEY, 0)
    assert len(unnumbered.boxes) == sum(box.label in LABELS for box in room.boxes) > 0
    assert len(recipe.make(replace(room, instance=None, boxes=()), 0, KEY, 0).boxes) == 0


def test_what_has_no_objects_says_so(room):
    bare = replace(room, instance=None)
    with pytest.raises(ShardError, match=r"room/whole: has no instance ids"):
        recipe_of(groups_of="own").make(bare, 0, KEY, 0)
    with pytest.raises(ShardError, match=r"has no boxes, and model\.boxes is oriented"):
        recipe_of(boxes_of="oriented").make(replace(room, boxes=None), 0, KEY, 0)
    bounds = recipe_of(boxes_of="axis_aligned").make(bare, 0, KEY, 0)  # of the dataset's boxes
    assert len(bounds.boxes) > 1
    assert not bounds.boxes[:, 6].any()


def test_joined_samples_keep_their_own_rows(room):
    recipe = recipe_of(groups_of="own", boxes_of="axis_aligned")
    samples = [recipe.make(room, 0, KEY, 0), recipe.make(room, 0, KEY, 0)]
    batch = recipe.join(samples)
    assert batch.sample_of_box.tolist() == [0] * len(samples[0].boxes) + [1] * len(samples[1].boxes)
    for index, sample in enumerate(samples):
        own = batch.labelled.voxel_coords[:, 0] == index
        first_group = index * len(sample.instance_of_group)
        first_instance = index * len(sample.label_of_instance)
        assert torch.equal(batch.group_of_voxel[own] - first_group, sample.group_of_voxel)
        moved = torch.where(sample.instance_of_voxel == NONE, NONE, sample.instance_of_voxel + first_instance)
        assert torch.equal(batch.instance_of_voxel[own], moved)
        assert (batch.sample_of_group[batch.group_of_voxel[own]] == index).all()
    empty = recipe.join([])
    assert empty.corners.shape == (0, 3)
    assert len(empty.group_of_voxel) == len(empty.boxes) == 0
