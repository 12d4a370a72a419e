"""One to four gloo processes must give the loss and the gradients of one process with the whole matrix of pairs.

The file is its own worker: `python test_contrastive_ranks.py FOLDER`, once per rank, runs every case below in one world
after the other and leaves what it found in the folder.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import run_worlds, visit_worlds
from torch import Tensor

import t4p.losses.contrastive as contrastive
import t4p.losses.logit_scale as logit_scale_module
from t4p.distributed import all_gather_ints, all_gather_rows, all_reduce_sum, reduce_scatter_rows
from t4p.losses.contrastive import contrastive_loss, contrastive_loss_of_ends, distinct_ends
from t4p.losses.logit_scale import clamped_logit_scale

pytestmark = pytest.mark.usefixtures("forked_python")

TOLERANCE = 1e-9
BOUNDS = (1.0, 100.0)
WORLD_SIZES = (1, 2, 3, 4)
SEVERAL = WORLD_SIZES[1:]  # alone there is nothing to gather and nothing to scale


@dataclass(frozen=True, eq=False)
class RankInput:
    """One rank's pairs, before the towers."""

    points: Tensor
    pixels: Tensor
    point_ids: Tensor
    pixel_ids: Tensor


@dataclass(frozen=True, eq=False)
class Towers:
    """The smallest model with the three kinds of parameters: two towers that all ranks share, and a temperature."""

    point_weight: Tensor
    pixel_weight: Tensor
    log_logit_scale: Tensor

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.point_weight, self.pixel_weight, self.log_logit_scale

    def embed(self, part: RankInput) -> tuple[Tensor, Tensor]:
        return F.normalize(part.points @ self.point_weight, dim=1), F.normalize(part.pixels @ self.pixel_weight, dim=1)


@dataclass(frozen=True, eq=False)
class Case:
    parts: list[RankInput]
    towers: Towers
    chunks: tuple[int, int]
    of_ends: bool


def make_case(seed: int, counts: list[int], log_logit_scale: float, of_ends: bool = False) -> Case:
    """
    Args:
        of_ends: rows with one id are equal, and the ranks compute the loss of distinct ends.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def ids(count: int) -> Tensor:
        # The same ids on every rank: they must only mean something within a rank.
        return torch.randint(0, max(count // 2, 1), (count,), generator=generator)

    parts = [RankInput(normal(count, 6), normal(count, 6), ids(count), ids(count)) for count in counts]
    if of_ends:
        parts = [
            RankInput(part.points[part.point_ids], part.pixels[part.pixel_ids], part.point_ids, part.pixel_ids)
            for part in parts
        ]
    scale = torch.tensor([log_logit_scale], dtype=torch.float64)
    towers = Towers(*(p.requires_grad_() for p in (normal(6, 5), normal(6, 5), scale)))
    row_chunk, column_chunk = (int(n) for n in torch.randint(1, 9, (2,), generator=generator))
    return Case(parts, towers, (row_chunk, column_chunk), of_ends)


def make_cases(world_size: int) -> list[Case]:
    rng = torch.Generator().manual_seed(world_size)
    uneven = [torch.randint(0, 14, (world_size,), generator=rng).tolist() for _ in range(8)]
    fixed = [
        [5] * world_size,  # even
        [0] + [7] * (world_size - 1),  # the first rank is empty
        [4] * (world_size - 1) + [0],  # the last one is
        [0] * (world_size - 1) + [6],  # only one rank has pairs
        [1] * world_size,
        [0] * world_size,  # no pair anywhere
    ]
    scales = [math.log(14.3), math.log(100.0), 7.0, 0.0, -2.0]  # inside, at, and beyond both bounds
    return [
        make_case(100 * world_size + i, counts, scales[i % 5], of_ends)
        for i, counts in enumerate(fixed + uneven)
        for of_ends in (False, True)
    ]


def reference(case: Case) -> list[Tensor]:
    """Loss and gradients of one process with the whole matrix, by autograd."""
    everything = RankInput(*(torch.cat([getattr(p, name) for p in case.parts]) for name in RankInput.__annotations__))
    rank_of_row = torch.cat([torch.full((len(p.points),), r) for r, p in enumerate(case.parts)])
    points, pixels = case.towers.embed(everything)
    # The clamp, written with autograd's own pieces: the gate is put on below.
    scale = case.towers.log_logit_scale.detach().exp().clamp(*BOUNDS).requires_grad_()
    if len(points) == 0:
        return [torch.zeros((), dtype=torch.float64), *(torch.zeros_like(p) for p in case.towers.parameters())]
    logits = scale * points @ pixels.T
    same = [ids[:, None] == ids[None] for ids in (everything.point_ids, everything.pixel_ids, rank_of_row)]
    duplicates = (same[0] | same[1]) & same[2] & ~torch.eye(len(points), dtype=torch.bool)
    logits = logits.masked_fill(duplicates, -torch.inf)
    pairs = torch.arange(len(points))
    loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    *towers, grad_scale = torch.autograd.grad(loss, (case.towers.point_weight, case.towers.pixel_weight, scale))
    at_maximum, at_minimum = scale >= BOUNDS[1], scale <= BOUNDS[0]
    stuck = (at_maximum & (grad_scale < 0)) | (at_minimum & (grad_scale > 0))
    return [loss.detach(), *towers, torch.where(stuck, 0.0, grad_scale * scale.detach())]


def loss_of_rank(case: Case, rank: int) -> Tensor:
    part = case.parts[rank]
    scale = clamped_logit_scale(case.towers.log_logit_scale, *BOUNDS)
    with patch.multiple(contrastive, ROW_CHUNK=case.chunks[0], COLUMN_CHUNK=case.chunks[1]):
        if not case.of_ends:
            return contrastive_loss(*case.towers.embed(part), scale, part.point_ids, part.pixel_ids)
        ends = distinct_ends(torch.stack([part.point_ids, part.pixel_ids]))
        points, pixels = case.towers.embed(part)
        rows = [first_of_each(ids) for ids in (part.point_ids, part.pixel_ids)]
        return contrastive_loss_of_ends(points[rows[0]], pixels[rows[1]], scale, ends.pairs)


def first_of_each(ids: Tensor) -> list[int]:
    """A row of every id, ids ascending."""
    return [ids.tolist().index(i) for i in ids.unique().tolist()]


def mean_over_ranks(case: Case, rank: int) -> list[Tensor]:
    """Loss and gradients as DeepSpeed would average them."""
    loss = loss_of_rank(case, rank)
    results = [loss.detach().clone(), *torch.autograd.grad(loss, case.towers.parameters())]
    for result in results:
        dist.all_reduce(result)
        result /= dist.get_world_size()
    return results


def worst_errors(case: Case, rank: int) -> list[float]:
    """Of the loss, the two towers and the temperature, relative to the largest entry (at least 1)."""
    errors = []
    for found, wanted in zip(mean_over_ranks(case, rank), reference(case), strict=True):
        size = max(1.0, wanted.abs().max().item())
        errors.append((found - wanted).abs().max().item() / size if found.isfinite().all() else math.inf)
    return errors


# --- planted bugs: each breaks one seam of the real code, in the way that public code breaks it -------------------


def no_grad_gather(contributions: Tensor, counts: list[int]) -> Tensor:
    """What other ranks' rows say about my pixels is dropped."""
    return contributions[dist.get_rank(), : counts[dist.get_rank()]]


def averaging_gather(contributions: Tensor, counts: list[int]) -> Tensor:
    return reduce_scatter_rows(contributions, counts) / len(counts)


def unscaled(self: contrastive.Layout) -> float:
    return 0.5 / max(sum(self.num_pairs), 1)


def own_weights_alone(rows: Tensor, counts: list[int]) -> Tensor:
    """Pixels of other ranks count once, whatever number of pairs they have."""
    return all_gather_rows(rows if rows.ndim == 2 else torch.ones_like(rows), counts)


PLANTED_BUGS: dict[str, Callable] = {
    "no_grad_gather": lambda: patch.object(contrastive, "reduce_scatter_rows", no_grad_gather),
    "averaging_gather": lambda: patch.object(contrastive, "reduce_scatter_rows", averaging_gather),
    "loss_not_scaled_by_world_size": lambda: patch.object(contrastive.Layout, "weight", property(unscaled)),
    "duplicates_not_masked": lambda: patch.object(contrastive.Duplicates, "fill_", lambda *_: None),
    "pixels_not_weighted": lambda: patch.object(contrastive, "all_gather_rows", own_weights_alone),
    "columns_of_own_rows_only": lambda: patch.object(contrastive, "all_reduce_sum", lambda tensor: tensor),
    "temperature_gated_by_each_rank_alone": lambda: patch.object(
        logit_scale_module, "all_reduce_sum", lambda tensor: tensor
    ),
}


def check_collectives(rank: int, world_size: int) -> None:
    counts = [(3 * r + 1) % world_size for r in range(world_size)]
    rows = torch.arange(counts[rank] * 2, dtype=torch.float64).view(-1, 2) + 100 * rank
    assert all_gather_ints([counts[rank], -rank], torch.device("cpu")) == [[c, -r] for r, c in enumerate(counts)]
    gathered = all_gather_rows(rows, counts)
    assert gathered.shape == (world_size, max(counts), 2)
    for r, count in enumerate(counts):
        expected = torch.arange(count * 2, dtype=torch.float64).view(-1, 2) + 100 * r
        assert torch.equal(gathered[r, :count], expected)
        assert not gathered[r, count:].any()
    summed = reduce_scatter_rows(gathered * (rank + 1), counts)
    assert torch.equal(summed, rows * sum(range(1, world_size + 1)))
    assert all_gather_rows(rows[:0], [0] * world_size).shape == (world_size, 0, 2)
    assert all_reduce_sum(torch.tensor(rank + 1.0)) == sum(range(1, world_size + 1))


def message_of_a_rank_without_graph(rank: int) -> str:
    case = make_case(0, [3] * dist.get_world_size(), 2.0)
    if rank == 1:
        for parameter in case.towers.parameters():
            parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="without anything that requires a gradient") as caught:
        loss_of_rank(case, rank)
    return str(caught.value)


def error_with_pixels_detached_on_an_empty_rank(rank: int) -> float:
    """The empty rank has no pixel tower in its graph; the others must not wait for it."""
    case = make_case(1, [6] * (dist.get_world_size() - 1) + [0], math.log(14.3))
    part = case.parts[rank]
    points, pixels = case.towers.embed(part)
    pixels = pixels.detach() if len(pixels) == 0 else pixels
    scale = clamped_logit_scale(case.towers.log_logit_scale, *BOUNDS)
    loss = contrastive_loss(points, pixels, scale, part.point_ids, part.pixel_ids)
    loss.backward()
    gradient = case.towers.pixel_weight.grad
    if gradient is None:
        gradient = torch.zeros_like(case.towers.pixel_weight)
    dist.all_reduce(gradient)
    return (gradient / dist.get_world_size() - reference(case)[2]).abs().max().item()


def run_world(rank: int, world_size: int) -> dict:
    check_collectives(rank, world_size)
    cases = make_cases(world_size)
    report: dict = {"right": [worst_errors(case, rank) for case in cases]}
    if world_size == 1:
        return report
    for name, plant in PLANTED_BUGS.items():
        with plant():
            report[name] = [worst_errors(case, rank) for case in cases[:20:3]]  # both forms, uneven and empty ranks
    report["without_graph"] = message_of_a_rank_without_graph(rank)
    report["detached_pixels"] = error_with_pixels_detached_on_an_empty_rank(rank)
    return report


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """By world size, what every rank found."""
    return run_worlds(__file__, WORLD_SIZES, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(params=SEVERAL)
def reports(request: pytest.FixtureRequest, worlds: dict[int, list[dict]]) -> list[dict]:
    """What every rank of one world found."""
    return worlds[request.param]


def accepted(errors_of_cases: list[list[float]]) -> bool:
    """The check that the real code passes and every planted bug must fail."""
    return all(error < TOLERANCE for errors in errors_of_cases for error in errors)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_loss_and_gradients_averaged_over_ranks_equal_one_process_with_all_pairs(worlds, world_size):
    for report in worlds[world_size]:
        assert accepted(report["right"]), report["right"]


@pytest.mark.parametrize("bug", PLANTED_BUGS)
def test_the_check_rejects_a_planted_bug(reports, bug):
    for report in reports:
        assert not accepted(report[bug])


def test_a_gather_without_gradient_leaves_the_loss_right_and_the_pixel_tower_wrong(reports):
    for report in reports:
        loss, point_tower, pixel_tower, temperature = torch.tensor(report["no_grad_gather"]).amax(0)
        assert max(loss, point_tower, temperature) < TOLERANCE
        assert pixel_tower > 1e-2


def test_a_rank_without_a_graph_is_named_on_every_rank(reports):
    for report in reports:
        assert f"ranks [1] of {len(reports)}" in report["without_graph"]


def test_an_empty_rank_whose_pixels_are_detached_neither_hangs_nor_changes_the_gradient(reports):
    assert max(report["detached_pixels"] for report in reports) < TOLERANCE


if __name__ == "__main__":
    visit_worlds(WORLD_SIZES, Path(sys.argv[1]), run_world)
