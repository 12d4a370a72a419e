"""Groups of voxels: surfaces apart, the rule against a plain one, no order of points, and rooms with known objects."""

from itertools import combinations

import numpy as np
import pytest
import torch

from shards.synthetic.cloud import make_scene
from t4p.data import groups as groups_module
from t4p.data.groups import group_points, merge_pairs, neighbour_pairs

STEP = 0.01  # metres between the points of made surfaces


def square(width: float, normal_axis: int) -> torch.Tensor:
    """Points of a flat square that begins at the origin."""
    steps = torch.arange(0, width, STEP, dtype=torch.float64)
    flat = torch.cartesian_prod(steps, steps)
    columns = list(flat.T)
    columns.insert(normal_axis, torch.zeros(len(flat), dtype=torch.float64))
    return torch.stack(columns, dim=1)


def share_of_largest(found: torch.Tensor) -> float:
    return float(torch.bincount(found).max() / len(found))


def test_floor_and_walls_of_a_corner_are_apart_and_whole() -> None:
    sides = [square(1.0, axis) for axis in (2, 0, 1)]
    found = group_points(torch.cat(sides), None).split([len(side) for side in sides])
    largest = [int(torch.bincount(side).argmax()) for side in found]
    assert len(set(largest)) == 3
    for side in found:
        assert share_of_largest(side) > 0.8  # two voxels along every edge are a group of their own


def test_a_ball_on_a_floor_is_apart_from_it() -> None:
    direction = torch.nn.functional.normalize(
        torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1
    )
    ball = 0.25 * direction + torch.tensor([0.5, 0.5, 0.25])
    floor = square(1.0, 2)
    found = group_points(torch.cat([floor, ball]), None)
    on_floor, on_ball = found.split([len(floor), len(ball)])
    assert share_of_largest(on_floor) > 0.8
    assert int(torch.bincount(on_floor).argmax()) not in on_ball[ball[:, 2] > 0.15]


def test_what_bulges_into_the_room_is_cut_less_than_what_recedes() -> None:
    """The floor has a ridge and a channel of one shape; the ceiling makes the room."""
    along, angle = torch.arange(0, 1, STEP), torch.arange(0, torch.pi, STEP / 0.2)
    x, angle = torch.cartesian_prod(along, angle).T
    ridge = torch.stack([x, 0.2 * torch.cos(angle), 0.2 * torch.sin(angle)], dim=1)
    channel = ridge * torch.tensor([1.0, 1, -1]) + torch.tensor([0, 1.0, 0])
    ceiling = square(1.0, 2).float() + torch.tensor([0, 0, 2.4])
    found = group_points(torch.cat([ridge, channel, ceiling]), None)
    on_ridge, on_channel, _ = found.split([len(ridge), len(channel), len(ceiling)])
    assert 2 * len(on_ridge.unique()) <= len(on_channel.unique())


def test_colour_parts_what_is_flat() -> None:
    floor = square(1.0, 2)
    colors = torch.where(floor[:, :1] < 0.48, 0.2, 0.8).expand(-1, 3)
    assert int(group_points(floor, None).max()) == 0
    found = group_points(floor, colors)
    assert torch.equal(found, (floor[:, 0] >= 0.48).long())  # the border of two voxels


def test_rooms_are_cut_along_their_objects() -> None:
    room = make_scene(7, 0, 12, 160, 120, "synthetic", "room")
    found = group_points(torch.from_numpy(room.points), torch.from_numpy(room.rgb).float() / 255).numpy()
    objects = np.unique(np.stack([room.semantic, room.instance]), axis=1, return_inverse=True)[1]
    counts = np.zeros((found.max() + 1, objects.max() + 1), int)
    np.add.at(counts, (found, objects), 1)
    assert counts.max(1).sum() / len(found) >= 0.97
    assert len(counts) <= 500


def test_the_order_of_points_does_not_matter_and_groups_are_numbered_by_it() -> None:
    room = make_scene(7, 1, 3, 80, 60, "synthetic", "room")
    points, colors = torch.from_numpy(room.points), torch.from_numpy(room.rgb).float() / 255
    found = group_points(points, colors)
    assert torch.equal(found, group_points(points, colors))
    shuffled = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    again = group_points(points[shuffled], colors[shuffled])
    num_groups = int(found.max()) + 1
    assert num_groups > 20
    assert len(torch.unique(found[shuffled] * num_groups + again)) == num_groups == int(again.max()) + 1
    for each in (found, again):
        _, first = np.unique(each.numpy(), return_index=True)
        assert (np.diff(first) > 0).all()


def test_neighbours_are_those_of_brute_force() -> None:
    generator = np.random.default_rng(0)
    for extent in ((1, 1, 1), (1, 1, 9), (9, 1, 1), (2, 3, 1), (4, 4, 4), (1 << 20, 2, 2)):
        coords = np.unique(generator.integers(0, extent, (40, 3)), axis=0).astype(np.int32)
        found = set(zip(*(rows.tolist() for rows in neighbour_pairs(coords)), strict=True))
        expected = {
            (one, other)
            for one, other in combinations(range(len(coords)), 2)
            if abs(coords[one] - coords[other]).max() == 1
        }
        assert found == expected


def merged_plainly(num_voxels: int, edges: list[tuple[int, int, float]]) -> list[frozenset[int]]:
    """The rule word for word, with the largest weight within a group looked up again every time."""
    group_of = {row: frozenset([row]) for row in range(num_voxels)}
    inside = dict.fromkeys(group_of.values(), 0.0)
    for one, other, weight in sorted(edges, key=lambda edge: edge[2]):
        a, b = group_of[one], group_of[other]
        if a != b and weight <= min(inside[group] + groups_module.SCALE / len(group) for group in (a, b)):
            inside[a | b] = weight
            group_of.update(dict.fromkeys(a | b, a | b))
    for one, other, _ in sorted(edges, key=lambda edge: edge[2]):
        a, b = group_of[one], group_of[other]
        if a != b and min(len(a), len(b)) < groups_module.LEAST_VOXELS:
            group_of.update(dict.fromkeys(a | b, a | b))
    return [group_of[row] for row in range(num_voxels)]


@pytest.mark.parametrize("least_voxels", [0, 4])
def test_merging_is_the_rule_of_the_paper(monkeypatch: pytest.MonkeyPatch, least_voxels: int) -> None:
    monkeypatch.setattr(groups_module, "LEAST_VOXELS", least_voxels)
    monkeypatch.setattr(groups_module, "_BLOCK", 7)
    nums_of_groups = set()
    for seed in range(60):
        generator = np.random.default_rng(seed)
        num_voxels, num_pairs = int(generator.integers(2, 25)), int(generator.integers(0, 60))
        first, second = generator.integers(0, num_voxels, (2, num_pairs))
        weights = generator.integers(0, 12, num_pairs) * 0.01  # with ties
        found = merge_pairs(num_voxels, first, second, weights)
        expected = merged_plainly(num_voxels, list(zip(first.tolist(), second.tolist(), weights.tolist(), strict=True)))
        assert [frozenset(np.nonzero(found == number)[0].tolist()) for number in found] == expected
        nums_of_groups.add(len(set(expected)))
    assert len(nums_of_groups) > 5


def test_no_point_one_point_and_points_of_one_voxel() -> None:
    assert group_points(torch.zeros(0, 3), torch.zeros(0, 3)).tolist() == []
    assert group_points(torch.ones(1, 3), None).tolist() == [0]
    assert group_points(torch.full((50, 3), 0.01), torch.rand(50, 3)).tolist() == [0] * 50
    apart = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0, 0.001]])
    assert group_points(apart, None).tolist() == [0, 1, 0]


def test_far_from_the_origin_is_the_same_as_near_it() -> None:
    corner = torch.cat([square(0.6, axis) for axis in (2, 0, 1)]) + 0.003
    step = groups_module.ORIGIN_STEP * groups_module.VOXEL_SIZE
    far = corner + torch.tensor([step * 120_000, -step * 90_000, 0], dtype=torch.float64)  # 4.9 million metres
    assert torch.equal(group_points(far, None), group_points(corner, None))


def test_what_is_no_cloud_is_refused() -> None:
    points, colors = torch.zeros(4, 3), torch.zeros(4, 3)
    broken = points.clone()
    broken[2, 1], broken[3, 0] = torch.nan, torch.inf
    with pytest.raises(ValueError, match="2 points are not finite, the first of them row 2; leave them out"):
        group_points(broken, colors)
    with pytest.raises(ValueError, match=r"shape \(4, 2\); wanted \(N, 3\)"):
        group_points(points[:, :2], None)
    with pytest.raises(ValueError, match=r"colors are torch.float32 of shape \(3, 3\); wanted floats \(4, 3\)"):
        group_points(points, colors[:3])
    with pytest.raises(ValueError, match=r"from 0 to 255; wanted \[0, 1\]"):
        group_points(points, torch.tensor([[0.0, 255, 3]]).expand(4, 3))
    with pytest.raises(ValueError, match=r"span 1e\+06 m"):
        group_points(torch.tensor([[0.0, 0, 0], [1e6, 0, 0]]), None)
