"""Tiles of a large scan: every voxel is in one, and what is computed tile by tile is what is computed at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from t4p.config.plans import UNetPlan
from t4p.models.box_head import BoxHead
from t4p.models.norm import RowBatchNorm
from t4p.models.sparse import tiles
from t4p.models.sparse.pyramid import build_pyramid
from t4p.models.unet import SparseUNet
from t4p.plan.live_memory import LiveMemory

# Wide enough for both ways to convolve (im2col below 96 channels), a wide stem, stages of one block and of two.
PLAN = UNetPlan(8, 5, (8, 96, 24), (1, 2, 1), (16, 12, 8), (2, 1, 1))


def made_coords(kind: str, seed: int = 0) -> Tensor:
    """Canonical voxels of two samples, negative coordinates among them."""
    rng = np.random.default_rng(seed)
    xyz = {
        "cloud": rng.integers(-16, 16, (1500, 3)),
        "floor": np.column_stack([rng.integers(-40, 40, (1500, 2)), rng.integers(0, 2, 1500)]),
        "facade": np.column_stack([rng.integers(6, 8, 1500), rng.integers(-40, 40, (1500, 2))]),
        "beam": np.column_stack([rng.integers(-900, 900, 1500), rng.integers(0, 3, (1500, 2))]),
    }[kind]
    return torch.unique(torch.from_numpy(np.column_stack([rng.integers(0, 2, 1500), xyz])).int(), dim=0)


KINDS = ("cloud", "floor", "facade", "beam")


@pytest.fixture(scope="module")
def network() -> SparseUNet:
    """In evaluation, with running statistics that do something."""
    torch.manual_seed(0)
    net = SparseUNet(3, PLAN)
    for norm in net.modules():
        if isinstance(norm, RowBatchNorm):
            torch.nn.init.uniform_(norm.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return net.eval()


def features_of(coords: Tensor) -> Tensor:
    return torch.randn(len(coords), 3, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def results(network: SparseUNet, coords: Tensor) -> list[Tensor]:
    """Every level of the encoder, the decoder's first level and its last."""
    pyramid = build_pyramid("native", coords, network.num_levels)
    levels = network.encode(pyramid, features_of(coords))
    return [*levels, network.decode_once(pyramid, levels[-1], levels[-2]), network.decode(pyramid, levels, torch.log1p)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 50, 1000, 10_000])
def test_every_voxel_lies_in_one_box_whose_borders_are_even(kind: str, most: int) -> None:
    coords = made_coords(kind)
    boxes = tiles.cut_boxes(coords, most)
    held = torch.stack([box.holds(coords) for box in boxes])
    assert torch.equal(held.sum(0), torch.ones(len(coords), dtype=torch.int64))
    assert all(at % 2 == 0 for box in boxes for at in (*box.low, *box.high))
    counts = held.sum(1)
    assert counts.min() > 0
    crowded = torch.tensor([any(high - low > 2 for low, high in zip(box.low, box.high, strict=True)) for box in boxes])
    assert counts[crowded].max() <= most if crowded.any() else most == 1
    assert len(boxes) == 1 if most > len(coords) else len(boxes) > 1
    # Not many more than must be: half full in the mean, until tiles are as small as they get.
    assert most == 1 or len(boxes) <= 2 + 3 * len(coords) / most


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [100, 500])
def test_a_network_says_the_same_in_tiles(network, monkeypatch: pytest.MonkeyPatch, kind: str, most: int) -> None:
    coords = made_coords(kind)
    whole = results(network, coords)
    monkeypatch.setattr(tiles, "TILE_VOXELS", most)
    for found, wanted in zip(results(network, coords), whole, strict=True):
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_half_precision_says_the_same_in_tiles(network, monkeypatch: pytest.MonkeyPatch) -> None:
    coords = made_coords("cloud")
    with torch.autocast("cpu", torch.bfloat16):
        whole = results(network, coords)
        monkeypatch.setattr(tiles, "TILE_VOXELS", 300)
        for found, wanted in zip(results(network, coords), whole, strict=True):
            assert found.dtype == wanted.dtype
            assert (found - wanted).abs().max() <= 0.01 * wanted.abs().max()


def test_tiles_that_look_less_far_are_found_out(network, monkeypatch: pytest.MonkeyPatch) -> None:
    coords = made_coords("cloud")
    whole = results(network, coords)
    monkeypatch.setattr(tiles, "TILE_VOXELS", 300)
    for stage, place in ((network.encoder[0], 1), (network.decoder[-1], -1)):
        monkeypatch.setattr(stage, "reach", stage.reach - 1)
        assert (results(network, coords)[place] - whole[place]).abs().max() > 1e-3 * whole[place].abs().max()
        monkeypatch.undo()
        monkeypatch.setattr(tiles, "TILE_VOXELS", 300)


def test_boxes_are_the_same_where_the_levels_that_they_are_made_of_came_in_tiles(
    network, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    head = BoxHead(
        16, 24, 8, 12, RowBatchNorm, oriented=True, logit_scale=10.0, coarse_voxel_size=0.16, sparse_backend="native"
    ).eval()
    text = torch.nn.functional.normalize(torch.randn(4, 12), dim=1)
    coords = made_coords("cloud")

    @torch.no_grad()
    def located() -> tuple[Tensor, ...]:
        pyramid = build_pyramid("native", coords, network.num_levels)
        levels = network.encode(pyramid, features_of(coords))
        fine = network.decode_once(pyramid, levels[-1], levels[-2])
        return head(pyramid.coords(3), levels[-1], pyramid.coords(2), fine, text)

    whole = located()
    monkeypatch.setattr(tiles, "TILE_VOXELS", 100)
    for found, wanted in zip(located(), whole, strict=True):
        assert (found.double() - wanted.double()).abs().max() <= 1e-5 * max(1, wanted.double().abs().max())


def test_training_and_gradients_see_all_voxels_at_once(network, monkeypatch: pytest.MonkeyPatch) -> None:
    coords = made_coords("cloud")
    monkeypatch.setattr(tiles, "TILE_VOXELS", 100)
    monkeypatch.setattr(tiles, "cut_boxes", lambda *_: pytest.fail("cut into tiles"))
    pyramid = build_pyramid("native", coords, network.num_levels)
    assert network(pyramid, features_of(coords)).requires_grad
    other = SparseUNet(3, PLAN)
    with torch.no_grad():  # of whom only the statistics move, over all voxels
        other(pyramid, features_of(coords))


def test_tiles_bound_what_is_alive_at_once(network, monkeypatch: pytest.MonkeyPatch) -> None:
    coords = torch.cat([made_coords("floor") + torch.tensor([0, 0, 0, 20 * part]).int() for part in range(8)])
    coords = coords[np.lexsort(coords.numpy().T[::-1])]
    peaks = []
    for most in (10**9, 500):
        monkeypatch.setattr(tiles, "TILE_VOXELS", most)
        with torch.no_grad(), LiveMemory() as memory:
            network(build_pyramid("native", coords, network.num_levels), features_of(coords))
        peaks.append(int(memory.timeline().max()))
    assert peaks[1] < 0.4 * peaks[0], peaks
