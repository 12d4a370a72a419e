"""Points and voxels on an analytic wall and on random clouds."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from t4p.config.data import NOTHING_DROPPED, AugmentConfig, DropFeaturesConfig
from t4p.data import transforms
from t4p.data.decode import DecodedFrame, with_color_of
from t4p.data.placement import AS_RECORDED, draw_placement

K = np.array([[100.0, 0, 31.5], [0, 100.0, 23.5], [0, 0, 1]])


def wall_frame(world_from_camera=None, color_from_depth=None, color_size=(48, 64), K_color=None):
    """A camera that looks at a plane 2 m ahead; the colour of a pixel encodes its (row, col)."""
    height, width = color_size
    color = np.zeros((height, width, 3), np.uint8)
    color[..., 0] = np.arange(height)[:, None] * 255 // height
    color[..., 1] = np.arange(width)[None] * 255 // width
    depth = np.full((48, 64), 2000, np.uint16)
    depth[:5] = 0
    return DecodedFrame(
        color=color,
        depth=depth,
        depth_scale=1000.0,
        K_color=K if K_color is None else K_color,
        K_depth=K,
        color_from_depth=np.eye(4) if color_from_depth is None else color_from_depth,
        world_from_camera=world_from_camera,
    )


def lift(frame, image_size, pixel_stride, max_depth, in_world):
    """The points of a frame as numpy arrays, and the image they are seen in."""
    frame = with_color_of(frame, image_size)
    lifted = transforms.lift_frame(frame, pixel_stride, max_depth, in_world)
    return replace(lifted, **{name: value.numpy() for name, value in vars(lifted).items()}), frame.color


def test_points_of_a_wall_lie_on_it_and_know_their_pixels():
    points, image = lift(wall_frame(), (48, 64), 1, 10.0, True)
    assert len(points.points) == 43 * 64
    # Without a pose: upright camera axes (right, ahead, up).
    np.testing.assert_allclose(points.points[:, 1], 2.0)
    row, col = points.pixel_of_point.T
    np.testing.assert_allclose(points.points[:, 0], (col - 31.5) / 100 * 2, atol=1e-5)
    np.testing.assert_allclose(points.points[:, 2], -(row - 23.5) / 100 * 2, atol=1e-5)
    np.testing.assert_array_equal((points.colors * 255).round().astype(np.uint8), image[row, col])


def test_a_pose_takes_points_to_the_world():
    world_from_camera = np.eye(4)
    world_from_camera[:3, 3] = (1, 2, 3)
    points, _ = lift(wall_frame(world_from_camera), (48, 64), 1, 10.0, True)
    np.testing.assert_allclose(points.points[:, 2], 5.0)
    stays, _ = lift(wall_frame(world_from_camera), (48, 64), 1, 10.0, False)
    np.testing.assert_allclose(stays.points[:, 1], 2.0)


def test_pixels_follow_when_the_image_is_resized():
    full, _ = lift(wall_frame(), (48, 64), 1, 10.0, True)
    half, image = lift(wall_frame(), (24, 32), 1, 10.0, True)
    assert image.shape == (24, 32, 3)
    np.testing.assert_array_equal(full.points, half.points)
    np.testing.assert_allclose((full.pixel_of_point + 0.5) / 2 - 0.5, half.pixel_of_point, atol=0.51)


def test_a_colour_camera_of_its_own_sees_points_where_it_should():
    color_from_depth = np.eye(4)
    color_from_depth[0, 3] = -0.1  # the colour camera stands 10 cm to the right
    K_color = np.array([[200.0, 0, 63.5], [0, 200.0, 47.5], [0, 0, 1]])
    frame = wall_frame(color_from_depth=color_from_depth, color_size=(96, 128), K_color=K_color)
    points, _ = lift(frame, (96, 128), 1, 10.0, True)
    x_depth = points.points[:, 0]
    np.testing.assert_allclose(points.pixel_of_point[:, 1], (x_depth - 0.1) / 2 * 200 + 63.5, atol=0.51)
    # What the colour camera does not see is left out.
    assert len(points.points) < 43 * 64


@pytest.mark.parametrize(("stride", "max_depth", "expected"), [(1, 1.9, 0), (2, 10.0, 21 * 32), (4, 2.0, 10 * 16)])
def test_stride_and_range_thin_the_points(stride, max_depth, expected):
    assert len(lift(wall_frame(), (48, 64), stride, max_depth, True)[0].points) == expected


@pytest.mark.parametrize("seed", range(20))
def test_augmentation_is_a_similarity_about_the_vertical(seed):
    settings = AugmentConfig(rotation=True, mirror=True, scale=0.2, color_jitter=0.1)
    placement = draw_placement(settings, seed, 0, "room/0", NOTHING_DROPPED)
    linear = placement.matrix[:3, :3]
    squared = linear @ linear.T
    np.testing.assert_allclose(squared, squared[0, 0] * np.eye(3), atol=1e-12)
    assert 0.8 <= np.sqrt(squared[0, 0]) <= 1.2
    np.testing.assert_allclose(linear[2], [0, 0, np.sqrt(squared[0, 0])])
    np.testing.assert_array_equal(placement.matrix[:, 3], [0, 0, 0, 1])
    assert all(0 <= shift < 1 for shift in placement.grid_shift)


def test_everything_switched_off_moves_the_grid_alone():
    off = AugmentConfig(rotation=False, mirror=False, scale=0, color_jitter=0)
    placement = draw_placement(off, 0, 0, "room/0", NOTHING_DROPPED)
    np.testing.assert_array_equal(placement.matrix, np.eye(4))
    assert placement.tint == (0, 0, 0)
    assert placement.jitter == 0
    assert placement.grid_shift != (0, 0, 0)


def test_one_setting_does_not_change_the_draws_of_the_others():
    whole, part = (
        draw_placement(AugmentConfig(rotation=turned), 3, 1, "a/b", NOTHING_DROPPED) for turned in (True, False)
    )
    assert (whole.tint, whole.grid_shift) == (part.tint, part.grid_shift)
    np.testing.assert_allclose(np.linalg.det(whole.matrix), np.linalg.det(part.matrix))


def test_features_are_dropped_from_their_shares_of_samples_each_for_itself_and_nothing_else_changes():
    both = DropFeaturesConfig(color=0.3, height=0.6)
    drawn = [draw_placement(AugmentConfig(), 3, epoch, "a/b", both) for epoch in range(500)]
    shares = [np.mean([each.dropped == kinds for each in drawn]) for kinds in ((), ("color",), ("color", "height"))]
    np.testing.assert_allclose(shares, [0.7 * 0.4, 0.3 * 0.4, 0.3 * 0.6], atol=0.05)
    for epoch in range(20):
        one = draw_placement(AugmentConfig(), 3, epoch, "a/b", DropFeaturesConfig(height=0.6))
        assert one.dropped == tuple(name for name in drawn[epoch].dropped if name == "height")
        plain = draw_placement(AugmentConfig(), 3, epoch, "a/b", NOTHING_DROPPED)
        np.testing.assert_array_equal(plain.matrix, drawn[epoch].matrix)
        assert (plain.tint, plain.grid_shift) == (drawn[epoch].tint, drawn[epoch].grid_shift)
    assert draw_placement(None, 3, 0, "a/b", DropFeaturesConfig(color=0.999)) is AS_RECORDED, "that is validation"


@pytest.mark.parametrize("seed", range(100))
def test_voxels_are_unique_sorted_and_hold_their_points(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(rng.integers(0, 300), 3), scale=rng.uniform(0.01, 3)).astype(np.float32)
    voxel_size = float(rng.uniform(0.02, 0.5))
    voxels = transforms.voxelize(torch.from_numpy(points), voxel_size)
    expected, inverse = np.unique(np.floor(points / voxel_size).astype(int), axis=0, return_inverse=True)
    np.testing.assert_array_equal(voxels.voxel_of_point, inverse.reshape(-1))
    np.testing.assert_array_equal(voxels.num_points, np.bincount(inverse.reshape(-1), minlength=len(expected)))
    if len(points):
        np.testing.assert_array_equal(voxels.voxel_coords, expected - expected.min(axis=0))
    coords = voxels.voxel_coords.numpy()
    for strides in (1, 2, 3):
        coarse = transforms.coarsen(voxels.voxel_coords, strides)
        parents, parent = np.unique(coords >> strides, axis=0, return_inverse=True)
        np.testing.assert_array_equal(coarse.voxel_coords, parents.reshape(-1, 3))
        np.testing.assert_array_equal(coarse.voxel_of_point, parent.reshape(-1))
    values = rng.random((len(points), 2)).astype(np.float32)
    means = [values[inverse.reshape(-1) == voxel].mean(axis=0) for voxel in range(len(expected))]
    found = voxels.means(torch.from_numpy(values))
    np.testing.assert_allclose(found, np.reshape(means, (-1, 2)), atol=2e-7)


def test_the_grid_shift_moves_points_by_less_than_one_voxel():
    points = torch.from_numpy(np.random.default_rng(0).uniform(0, 5, size=(1000, 3)).astype(np.float32))
    plain = transforms.voxelize(points, 0.1)
    shifted = transforms.voxelize(points, 0.1, (0.3, 0.9, 0.5))
    difference = shifted.voxel_coords[shifted.voxel_of_point] - plain.voxel_coords[plain.voxel_of_point]
    assert set(np.unique(difference)) <= {-1, 0, 1}
    assert len(np.unique(difference)) > 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_coordinate_that_is_not_finite_is_an_error(bad):
    with pytest.raises(ValueError, match="not finite"):
        transforms.voxelize(torch.tensor([[0, 0, bad]]), 0.1)


def test_a_cloud_too_wide_for_the_grid_is_an_error():
    with pytest.raises(ValueError, match=r"2\^20 voxels"):
        transforms.voxelize(torch.tensor([[0.0, 0, 0], [1e6, 0, 0]]), 0.1)


def test_feature_kinds_are_columns_in_the_order_given():
    features = transforms.voxel_features(
        torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[7.0, 8, 9]]), ("color", "one", "position")
    )
    np.testing.assert_allclose(features, [[-1, 0, 1, 1, 7, 8, 9]])
    assert transforms.num_channels(("one",)) == 1


@pytest.mark.parametrize("seed", range(100))
def test_the_label_of_a_voxel_is_that_of_most_of_its_labelled_points(seed):
    rng = np.random.default_rng(seed)
    num_points, num_voxels, num_labels = rng.integers(1, 60), rng.integers(1, 8), rng.integers(1, 5)
    labels = rng.integers(-1, num_labels, num_points)
    voxels = rng.integers(0, num_voxels, num_points)
    found = transforms.majority_label(torch.from_numpy(labels), torch.from_numpy(voxels), num_voxels, num_labels)
    for voxel in range(num_voxels):
        votes = Counter(label for label in labels[voxels == voxel].tolist() if label != transforms.IGNORED)
        best = max(votes.values(), default=0)
        wanted = min((label for label, count in votes.items() if count == best), default=transforms.IGNORED)
        assert found[voxel] == wanted
