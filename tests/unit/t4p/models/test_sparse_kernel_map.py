"""Neighbour search: table, binary search and brute force agree on hundreds of coordinate sets."""

import random

import pytest
import torch

from t4p.models.sparse import kernel_map as kernel_map_module
from t4p.models.sparse.coordinates import KeyGrid, halve_coords
from t4p.models.sparse.kernel_map import (
    build_kernel_map,
    build_stride_map,
    neighbours_by_search,
    neighbours_by_table,
)

NUM_RANDOM_SETS = {3: 300, 5: 120}


def random_coords(seed: int) -> torch.Tensor:
    """0 to 40 canonical voxels, dense or scattered, in 1 to 3 batches, around or away from the origin."""
    draw = random.Random(seed)
    extent, batches, shift = draw.choice([1, 2, 4, 30]), draw.randint(1, 3), draw.choice([0, -7, 1000, -100_000])
    rows = {
        (draw.randrange(batches), *(shift + draw.randint(-extent, extent) for _ in range(3)))
        for _ in range(draw.randint(0, 40))
    }
    return torch.tensor(sorted(rows), dtype=torch.int32).reshape(-1, 4)


def neighbours_by_dictionary(coords: torch.Tensor, kernel_size: int) -> list[list[int]]:
    row_of = {tuple(row): index for index, row in enumerate(coords.tolist())}
    radius = kernel_size // 2
    steps = range(-radius, radius + 1)
    return [
        [row_of.get((b, x + dx, y + dy, z + dz), len(coords)) for dz in steps for dy in steps for dx in steps]
        for b, x, y, z in coords.tolist()
    ]


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_table_and_search_equal_brute_force_on_random_sets(kernel_size):
    sizes = set()
    for seed in range(NUM_RANDOM_SETS[kernel_size]):
        coords = random_coords(seed)
        sizes.add(len(coords))
        grid = KeyGrid.around(coords, margin=kernel_size // 2)
        keys = grid.keys(coords)
        expected = torch.tensor(neighbours_by_dictionary(coords, kernel_size), dtype=torch.int32)
        expected = expected.reshape(-1, kernel_size**3)
        assert torch.equal(neighbours_by_search(grid, keys, kernel_size), expected), seed
        assert torch.equal(neighbours_by_table(grid, keys, kernel_size), expected), seed
    assert {0, 1} <= sizes
    assert max(sizes) > 30


def test_pairs_list_every_meeting_once_and_nothing_twice_within_an_offset():
    for seed in range(50):
        coords = random_coords(seed)
        kernel_map = build_kernel_map(coords, 3)
        expected = {
            (source, target, offset)
            for target, row in enumerate(kernel_map.neighbours.tolist())
            for offset, source in enumerate(row)
            if source < len(coords) and offset != 13
        }
        found = []
        assert kernel_map.pairs[13] is None
        for offset, pairs in enumerate(kernel_map.pairs):
            if pairs is not None:
                source, target = (rows.tolist() for rows in pairs)
                assert len(set(source)) == len(source)
                assert len(set(target)) == len(target)
                found += zip(source, target, [offset] * len(source), strict=True)
        assert len(found) == len(expected)
        assert set(found) == expected


def test_a_stray_voxel_far_away_does_not_allocate_its_box(monkeypatch):
    def refuse(*_args):
        raise AssertionError("a table over 10^15 cells")

    monkeypatch.setattr(kernel_map_module, "neighbours_by_table", refuse)
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 100_000, 100_000, 100_000]], dtype=torch.int32)
    assert build_kernel_map(coords, 3).neighbours[0, [13, 22]].tolist() == [0, 1]


def test_stride_map_groups_every_voxel_by_its_place_under_the_parent():
    for seed in range(50):
        coords = random_coords(seed)
        coarse, parent = halve_coords(coords)
        stride_map = build_stride_map(coords, parent, len(coarse))
        assert sorted(stride_map.fine_rows.tolist()) == list(range(len(coords)))
        assert torch.equal(stride_map.coarse_rows, parent[stride_map.fine_rows])
        groups = stride_map.fine_rows.split(stride_map.group_sizes)
        for child_index, rows in enumerate(groups):
            for x, y, z in coords[rows, 1:].tolist():
                assert child_index == x % 2 + 2 * (y % 2) + 4 * (z % 2)
