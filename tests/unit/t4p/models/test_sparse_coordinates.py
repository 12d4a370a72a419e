"""Canonical order, keys and halving of voxel coordinates."""

import pytest
import torch

from t4p.models.sparse.coordinates import KeyGrid, check_canonical, double_coords, halve_coords
from t4p.models.sparse.pyramid import build_pyramid


def random_coords(seed: int, num_draws: int = 200, extent: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-extent, extent, (num_draws, 3), generator=generator)
    batch = torch.randint(0, 3, (num_draws, 1), generator=generator)
    return torch.unique(torch.cat([batch, xyz], dim=1).int(), dim=0)


@pytest.mark.parametrize("seed", range(20))
def test_halving_floors_every_coordinate_and_keeps_the_canonical_order(seed):
    coords = random_coords(seed)
    coarse, parent = halve_coords(coords)
    check_canonical(coarse)
    expected = {(b, x // 2, y // 2, z // 2) for b, x, y, z in coords.tolist()}  # Python's // floors
    assert [tuple(row) for row in coarse.tolist()] == sorted(expected)
    for row, (b, x, y, z) in zip(parent.tolist(), coords.tolist(), strict=True):
        assert coarse[row].tolist() == [b, x // 2, y // 2, z // 2]


@pytest.mark.parametrize("seed", range(10))
def test_doubling_gives_every_child_and_halving_takes_it_back(seed):
    coords = random_coords(seed)
    children = double_coords(coords)
    check_canonical(children)
    steps = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    expected = {(b, 2 * x + i, 2 * y + j, 2 * z + k) for b, x, y, z in coords.tolist() for i, j, k in steps}
    assert [tuple(row) for row in children.tolist()] == sorted(expected)
    coarse, parent = halve_coords(children)
    assert torch.equal(coarse, coords)
    assert torch.bincount(parent).tolist() == [8] * len(coords)


def test_doubling_no_voxels_and_voxels_too_far_away():
    assert double_coords(torch.empty(0, 4, dtype=torch.int32)).shape == (0, 4)
    edge = 2**30 - 1
    assert double_coords(torch.tensor([[7, edge, -edge, 0]], dtype=torch.int32))[-1].tolist() == [
        7,
        2**31 - 1,
        3 - 2**31,
        1,
    ]
    with pytest.raises(ValueError, match="reach 1073741824 voxels from the origin"):
        double_coords(torch.tensor([[0, 0, -(2**30), 0]], dtype=torch.int32))


def test_keys_ascend_with_the_rows_and_steps_add_a_constant():
    coords = random_coords(1)
    grid = KeyGrid.around(coords, margin=2)
    keys = grid.keys(coords)
    assert bool((keys[1:] > keys[:-1]).all())
    assert int(keys.min()) >= 0
    assert int(keys.max()) < grid.num_cells
    moved = coords.clone()
    moved[:, 1:] += torch.tensor([-2, 1, 2], dtype=torch.int32)
    assert torch.equal(grid.keys(moved), keys + grid.key_of_step(-2, 1, 2))


@pytest.mark.parametrize("backend", ["auto", "native", "minkowski"])
def test_build_pyramid_refuses_rows_out_of_order_for_every_backend(backend):
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 5]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"row 2 \[0, 0, 0, 5\] comes before row 1 \[0, 0, 1, 0\]"):
        build_pyramid(backend, coords, 2)


def test_build_pyramid_names_the_first_duplicate():
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"row 2 \[0, 0, 0, 1\] repeats row 1"):
        build_pyramid("native", coords, 2)


def test_a_permutation_of_good_coordinates_is_refused():
    coords = random_coords(2)
    permutation = torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="comes before"):
        build_pyramid("native", coords[permutation], 2)


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (torch.zeros(1, 4), "torch.float32"),
        (torch.zeros(1, 4, dtype=torch.int64), "torch.int64"),
        (torch.zeros(1, 3, dtype=torch.int32), r"\(1, 3\)"),
        (torch.tensor([[-1, 0, 0, 0]], dtype=torch.int32), "batch index, column 0, is negative"),
    ],
)
def test_build_pyramid_refuses_what_is_not_int32_batch_first(coords, message):
    with pytest.raises(ValueError, match=message):
        build_pyramid("native", coords, 1)


def test_a_span_beyond_64_bit_keys_is_an_error_not_a_wrong_neighbour():
    far = 2**30
    coords = torch.tensor([[0, -far, -far, -far], [0, far, far, far]], dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit into 64-bit keys"):
        build_pyramid("native", coords, 1)


def test_build_pyramid_refuses_unknown_backends_and_no_levels():
    coords = torch.zeros(1, 4, dtype=torch.int32)
    with pytest.raises(ValueError, match="'torchsparse'; choose auto, native or minkowski"):
        build_pyramid("torchsparse", coords, 1)
    with pytest.raises(ValueError, match="num_levels is 0"):
        build_pyramid("native", coords, 0)
