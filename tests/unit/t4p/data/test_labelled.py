"""Stored frames to labelled voxels: every point keeps its own label, and a batch is its samples side by side."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from shards.errors import ShardError
from shards.schema import Frame
from t4p.config.data import DropFeaturesConfig, LabelledAugmentConfig
from t4p.data.labelled import LabelRecipe
from t4p.data.labels import IGNORED, build_label_table

K = np.array([[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]])
LABELS = ("wall", "chair", "table")
TABLE = build_label_table(("unlabelled", *LABELS), LABELS, ("unlabelled",), "rooms")
RECIPE = LabelRecipe(
    tables=(TABLE,),
    pixel_stride=1,
    max_depth=10.0,
    in_world=True,
    voxel_size=0.1,
    num_strides=2,
    point_features=("one", "position"),
    augment=None,
    seed=5,
)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def make_frame(seed, semantic=None, **changes):
    """A slanted plane with random labels; a third of the pixels has no reading."""
    rng = np.random.default_rng(seed)
    depth = (1500 + np.add.outer(np.arange(48), np.arange(64)) * 10).astype(np.uint16)
    depth[rng.random(depth.shape) < 1 / 3] = 0
    labels = rng.integers(0, 4, depth.shape).astype(np.uint8) if semantic is None else semantic
    return Frame(
        **{
            "dataset": "test",
            "scene_id": "room",
            "frame_id": str(seed),
            "color": png(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)),
            "color_format": "png",
            "depth": png(depth),
            "depth_scale": 1000.0,
            "K_depth": K,
            "K_color": K,
            "color_from_depth": np.eye(4),
            "world_from_camera": np.eye(4),
            "semantic": png(labels),
        }
        | changes
    ), np.where(depth > 0, labels.astype(np.int64) - 1, -2)


@pytest.mark.parametrize("seed", range(20))
def test_every_point_has_the_label_of_its_pixel_and_every_voxel_that_of_most_points(seed):
    frame, wanted = make_frame(seed)
    sample = RECIPE.make(frame, 0, "room/0", 0)
    np.testing.assert_array_equal(sample.label_of_point, wanted[wanted > -2])
    for rows, labels in (
        (sample.voxel_of_point, sample.label_of_voxel),
        (sample.bottleneck_of_voxel[sample.voxel_of_point], sample.label_of_bottleneck),
    ):
        for voxel in np.random.default_rng(seed).choice(len(labels), 20):
            votes = np.bincount(sample.label_of_point[(rows == voxel) & (sample.label_of_point != IGNORED)])
            assert labels[voxel] == (votes.argmax() if votes.any() else IGNORED)
    assert (sample.bottleneck_of_voxel >= 0).all()
    assert sample.bottleneck_of_voxel.max() == len(sample.label_of_bottleneck) - 1


def test_the_bottleneck_of_a_voxel_is_where_it_lies():
    sample = RECIPE.make(make_frame(0)[0], 0, "room/0", 0)
    coarse = np.unique(sample.voxel_coords >> 2, axis=0)
    np.testing.assert_array_equal(coarse[sample.bottleneck_of_voxel], sample.voxel_coords >> 2)


def test_a_batch_is_its_samples_side_by_side():
    samples = [RECIPE.make(make_frame(seed)[0], 0, f"room/{seed}", 0) for seed in range(3)]
    batch = RECIPE.join(samples)
    assert batch.keys == ("room/0", "room/1", "room/2")
    voxels = np.cumsum([0, *(len(sample.voxel_coords) for sample in samples)])
    points = np.cumsum([0, *(len(sample.label_of_point) for sample in samples)])
    coarse = np.cumsum([0, *(len(sample.label_of_bottleneck) for sample in samples)])
    for index, sample in enumerate(samples):
        own = slice(voxels[index], voxels[index + 1])
        assert (batch.voxel_coords[own, 0] == index).all()
        np.testing.assert_array_equal(batch.voxel_coords[own, 1:], sample.voxel_coords)
        np.testing.assert_array_equal(batch.bottleneck_of_voxel[own], sample.bottleneck_of_voxel + coarse[index])
        own_points = batch.voxel_of_point[points[index] : points[index + 1]]
        np.testing.assert_array_equal(own_points, sample.voxel_of_point + voxels[index])
    assert len(batch.label_of_bottleneck) == coarse[-1]
    coords = batch.voxel_coords.numpy()
    assert (np.lexsort(coords.T[::-1]) == np.arange(len(coords))).all(), "the canonical row order of the network"


def test_nothing_is_a_batch_too():
    empty = RECIPE.join([])
    assert empty.voxel_coords.shape == (0, 4)
    assert empty.voxel_features.shape == (0, 4)
    assert empty.label_of_voxel.shape == empty.label_of_bottleneck.shape == (0,)


def test_a_frame_without_a_reading_is_a_sample_without_points():
    frame, _ = make_frame(0)
    sample = RECIPE.make(replace(frame, depth=png(np.zeros((48, 64), np.uint16))), 0, "room/0", 0)
    assert len(sample.voxel_coords) == len(sample.label_of_point) == 0


def test_draws_belong_to_seed_epoch_and_key_and_leave_the_labels():
    augmented = replace(RECIPE, augment=LabelledAugmentConfig())
    frame, _ = make_frame(0)
    first, again = (augmented.make(frame, 0, "room/0", 3) for _ in range(2))
    np.testing.assert_array_equal(first.voxel_features, again.voxel_features)
    others = (
        augmented.make(frame, 0, "room/0", 4),
        augmented.make(frame, 0, "room/1", 3),
        replace(augmented, seed=6).make(frame, 0, "room/0", 3),
    )
    for other in others:
        assert first.voxel_features.shape != other.voxel_features.shape or not np.array_equal(
            first.voxel_features, other.voxel_features
        )
        np.testing.assert_array_equal(first.label_of_point, other.label_of_point)


def test_a_dropped_feature_is_zero_in_all_voxels_and_nothing_else_of_the_sample_changes():
    plain = replace(RECIPE, augment=LabelledAugmentConfig(), point_features=("height", "color", "one"))
    dropping = replace(plain, drop_features=DropFeaturesConfig(color=0.5, height=0.5))
    frame, _ = make_frame(0)
    seen = set()
    for epoch in range(12):
        wanted, found = (recipe.make(frame, 0, "room/0", epoch) for recipe in (plain, dropping))
        dropped = dropping.place(0, "room/0", epoch).dropped
        seen.add(dropped)
        channels = np.array(["height" in dropped, *["color" in dropped] * 3, False])
        np.testing.assert_array_equal(found.voxel_features, np.where(channels, 0, wanted.voxel_features))
        for name in ("voxel_coords", "label_of_voxel", "voxel_of_point", "label_of_point"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert seen == {(), ("color",), ("height",), ("color", "height")}
    unaugmented = [replace(recipe, augment=None).make(frame, 0, "room/0", 0) for recipe in (plain, dropping)]
    np.testing.assert_array_equal(*(sample.voxel_features for sample in unaugmented))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"semantic": None}, ShardError, r"sample room/0: has no semantic labels"),
        ({"semantic": b"nothing"}, ShardError, r"sample room/0: labels cannot be decoded"),
        ({"semantic": png(np.zeros((24, 32), np.uint8))}, ShardError, "semantic image is 32x24, the depth image 64x48"),
        ({"semantic": png(np.full((48, 64), 9, np.uint8))}, ValueError, r"class id 9 has no name"),
    ],
)
def test_labels_that_cannot_be_used_are_told(changes, error, message):
    frame, _ = make_frame(0)
    with pytest.raises(error, match=message):
        RECIPE.make(replace(frame, **changes), 0, "room/0", 0)
