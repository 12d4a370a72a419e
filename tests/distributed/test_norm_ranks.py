"""Synchronised batch norm on several gloo processes must be torch's own batch norm of one process with all rows.

The file is its own worker: `python test_norm_ranks.py FOLDER`, once per rank, takes part in every world in turn.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from rank_processes import run_worlds, visit_worlds
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import t4p.models.norm as norm_module
from t4p.models.norm import NormFactory, Recomputation, SyncRowBatchNorm, build_norm, merge_running_statistics

pytestmark = pytest.mark.usefixtures("forked_python")

WORLD_SIZES = (1, 2, 3, 4)
# Relative to the largest entry (at least 1). Features under autocast are bfloat16, and so is their gradient.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "autocast": 1e-5}
BFLOAT16_ROUNDING = 2**-8
NUM_STEPS = 2


@dataclass(frozen=True)
class Case:
    """Rows of each rank in each of the steps, and how they are computed with."""

    counts: tuple[tuple[int, ...], ...]
    num_channels: int
    precision: str
    group_size: int | None
    seed: int

    def features(self, step: int) -> list[Tensor]:
        """Per rank. The ranks differ in mean, as frames do; any two rows in a row lie apart, because the gradient of
        two that are almost equal is rounding."""
        generator = torch.Generator().manual_seed(self.seed + step)
        counts = self.counts[step]
        rows = torch.rand(sum(counts), self.num_channels, generator=generator, dtype=torch.float64) + 1
        rows[::2] *= -1
        return [(part + 0.4 * r).to(self.feature_dtype) for r, part in enumerate(rows.split(counts))]

    def output_gradients(self, step: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1000 + self.seed + step)
        shape = self.num_channels
        return [torch.randn(n, shape, generator=generator, dtype=torch.float64) for n in self.counts[step]]

    @property
    def feature_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "autocast" else self.dtype

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "autocast" else nullcontext()

    def prepare(self, norm: nn.BatchNorm1d) -> nn.BatchNorm1d:
        """Weights and running statistics that are not their neutral initial values."""
        generator = torch.Generator().manual_seed(2000 + self.seed)
        with torch.no_grad():
            for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                values.copy_(torch.rand(self.num_channels, generator=generator) + 0.5)
        return norm.to(self.dtype)

    def group(self, rank: int) -> list[int]:
        """The ranks that share statistics with this one."""
        size = self.group_size or len(self.counts[0])
        first = rank // size * size
        return list(range(first, first + size))


@dataclass(frozen=True)
class Found:
    """Of one rank, in float64: per step the output and the gradients, the buffers after the last, the eval output."""

    outputs: list[Tensor]
    feature_gradients: list[Tensor]
    weight_gradients: list[Tensor]
    bias_gradients: list[Tensor]
    buffers: list[Tensor]
    evaluated: Tensor
    buffers_differ: Tensor  # 1.0 where another rank that shares the statistics has other bits


def make_cases(world_size: int) -> list[Case]:
    generator = torch.Generator().manual_seed(world_size)

    def random_counts() -> tuple[int, ...]:
        # Many small ones: 0, 1 and 2 rows are where the rules change.
        largest = int(torch.tensor([2, 5, 40])[torch.randint(0, 3, (), generator=generator)])
        return tuple(torch.randint(0, largest + 1, (world_size,), generator=generator).tolist())

    one_row = (0,) * (world_size - 1) + (1,)
    fixed = [
        ((50,) * world_size, (7,) * world_size),
        ((0,) + (30,) * (world_size - 1), (30,) * (world_size - 1) + (0,)),
        ((1,) * world_size, (2,) * world_size),
        ((0,) * world_size, (9,) * world_size),  # no row anywhere, then many
        ((9,) * world_size, one_row),  # a single row in the whole world
        (one_row, (0,) * world_size),
        ((20_000,) + (3,) * (world_size - 1), (5,) * world_size),
    ]
    many = fixed + [(random_counts(), random_counts()) for _ in range(12)]
    group_sizes = [None, *(size for size in range(1, world_size + 1) if world_size % size == 0)]
    return [
        Case(counts, 1 + index % 7, precision, group_size, 10 * index)
        for index, counts in enumerate(many)
        for precision in TOLERANCES
        for group_size in (group_sizes if precision == "float64" else [None])
    ]


def run_case(case: Case, norm: nn.Module, rank: int, apply: Callable | None = None) -> Found:
    """What this rank gets, its parameters' gradients summed over its group's ranks."""
    case.prepare(norm)
    outputs, feature_gradients, weight_gradients, bias_gradients = [], [], [], []
    for step in range(NUM_STEPS):
        features = case.features(step)[rank].requires_grad_()
        with case.autocast():
            output = apply(norm, features) if apply else norm(features)
        assert output.dtype == case.dtype
        gradient = case.output_gradients(step)[rank].to(output.dtype)
        of_features, *of_parameters = torch.autograd.grad(output, (features, norm.weight, norm.bias), gradient)
        outputs.append(output.detach().double())
        feature_gradients.append(of_features.double())
        for values, own in zip((weight_gradients, bias_gradients), of_parameters, strict=True):
            shares = gathered(own)
            values.append(sum(shares[r].double() for r in case.group(rank)))
    norm.eval()
    with torch.no_grad():
        evaluated = norm(case.features(0)[rank].to(case.dtype)).double()
    buffers = [buffer.detach().clone() for buffer in norm.buffers()]
    bits = torch.cat([buffer.double().reshape(-1) for buffer in buffers]).view(torch.int64)
    everyone = gathered(bits)
    differ = torch.tensor([float(not torch.equal(everyone[r], bits)) for r in case.group(rank)])
    return Found(outputs, feature_gradients, weight_gradients, bias_gradients, buffers, evaluated, differ)


def reference(case: Case, rank: int) -> Found:
    """torch's own batch norm of all rows of the group, in float64; with fewer than two, its evaluation mode."""
    norm = case.prepare(nn.BatchNorm1d(case.num_channels)).double()
    ranks = case.group(rank)
    outputs, feature_gradients, weight_gradients, bias_gradients = [], [], [], []
    for step in range(NUM_STEPS):
        parts, gradients = case.features(step), case.output_gradients(step)
        features = torch.cat([parts[r].double() for r in ranks]).requires_grad_()
        norm.train(len(features) >= 2)
        output = norm(features)
        of_features, *of_parameters = torch.autograd.grad(
            output, (features, norm.weight, norm.bias), torch.cat([gradients[r] for r in ranks])
        )
        own = ranks.index(rank)
        counts = [len(parts[r]) for r in ranks]
        outputs.append(output.detach().split(counts)[own])
        feature_gradients.append(of_features.split(counts)[own])
        weight_gradients.append(of_parameters[0])
        bias_gradients.append(of_parameters[1])
    evaluated = norm.eval()(case.features(0)[rank].double()).detach()
    buffers = list(norm.buffers())
    equal = torch.zeros(len(ranks))
    return Found(outputs, feature_gradients, weight_gradients, bias_gradients, buffers, evaluated, equal)


def gathered(tensor: Tensor) -> list[Tensor]:
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor.contiguous())
    return everyone


def worst_error(found: list[Tensor] | Tensor, wanted: list[Tensor] | Tensor) -> float:
    if isinstance(found, Tensor):
        found, wanted = [found], [wanted]
    errors = [0.0]
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        if a.numel():
            error = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp_min(1)
            errors.append(float(error.nan_to_num(torch.inf)))
    return max(errors)


def errors_of(case: Case, norm: nn.Module, rank: int) -> dict[str, float]:
    """Worst relative error of everything, in units of what is tolerated."""
    found, wanted = run_case(case, norm, rank), reference(case, rank)
    tolerance = TOLERANCES[case.precision]
    errors = {name: worst_error(getattr(found, name), getattr(wanted, name)) / tolerance for name in vars(found)}
    if case.precision == "autocast":
        errors["feature_gradients"] *= tolerance / BFLOAT16_ROUNDING
    return errors


def recomputed(norm: nn.Module, features: Tensor) -> Tensor:
    def context_fn() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), Recomputation()

    # The ReLU saves its output, which makes the backward pass ask for the norm's again.
    return checkpoint(
        lambda x: torch.relu(norm(x)), features, use_reentrant=False, preserve_rng_state=False, context_fn=context_fn
    )


def recomputation_differs(case: Case, build: NormFactory, rank: int) -> bool:
    plain = run_case(case, build(case.num_channels), rank, apply=lambda norm, x: torch.relu(norm(x)))
    twice = run_case(case, build(case.num_channels), rank, apply=recomputed)
    pairs = []
    for name in vars(plain):
        a, b = getattr(plain, name), getattr(twice, name)
        pairs += [(a, b)] if isinstance(a, Tensor) else list(zip(a, b, strict=True))
    return not all(torch.equal(a, b) for a, b in pairs)


def check_merging(rank: int, world_size: int) -> None:
    """Ranks with own running statistics get those of all rows, as equally many rows of each rank have them."""
    rows = torch.randn(world_size, 50, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
    rows += torch.arange(world_size)[:, None, None]
    norms = nn.ModuleList([build_norm("batch")(4), build_norm("sync_batch")(4), build_norm("layer")(4)])
    norms[0].momentum = 1.0  # the statistics of the one batch
    for norm in norms:
        norm(rows[rank])
    synchronised = [buffer.clone() for buffer in norms[1].buffers()]
    merge_running_statistics(norms)
    expected = rows.var(1).mean(0) + rows.mean(1).var(0, correction=0)
    torch.testing.assert_close(norms[0].running_mean, rows.mean((0, 1)))
    torch.testing.assert_close(norms[0].running_var, expected)
    assert norms[0].num_batches_tracked == 1
    merged = [buffer.clone() for buffer in norms.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(norms[1].buffers(), synchronised, strict=True))
    for buffer in norms.buffers():
        assert all(torch.equal(buffer, other) for other in gathered(buffer))
    merge_running_statistics(norms)
    assert all(torch.equal(a, b) for a, b in zip(norms.buffers(), merged, strict=True))


def check_groups_merge() -> None:
    """Also norms over groups of ranks; a batch that only the other group had counts."""
    norm = build_norm("sync_batch", 2)(3)
    norm(torch.randn(4 if dist.get_rank() >= 2 else 0, 3) + dist.get_rank())
    merge_running_statistics(norm)
    assert norm.num_batches_tracked == 1
    assert norm.running_mean.abs().max() > 0.05
    assert all(torch.equal(norm.running_mean, other) for other in gathered(norm.running_mean))


# --- planted bugs -------------------------------------------------------------------------------------------------

PLANTED_BUGS: dict[str, Callable[[], AbstractContextManager]] = {
    "statistics_of_own_rows": lambda: patch.object(norm_module, "all_gather_equal", lambda tensor, group: tensor[None]),
    "backward_of_own_rows": lambda: patch.object(norm_module, "all_reduce_sum", lambda tensor, group: tensor),
    "ranks_not_weighted_by_their_rows": lambda: patch.object(norm_module, "_merge", unweighted_merge),
}


def unweighted_merge(statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, mean, variance = statistics.mean(0).split([1, statistics.shape[1] // 2, statistics.shape[1] // 2])
    return mean, variance, statistics[:, 0].sum()


def run_world(rank: int, world_size: int) -> dict:
    cases = make_cases(world_size)
    builds = {size: build_norm("sync_batch", size) for size in {case.group_size for case in cases}}
    if world_size == 1:
        builds[None] = SyncRowBatchNorm  # build_norm has no use for it in a world of one
    report: dict = {
        "right": [errors_of(case, builds[case.group_size](case.num_channels), rank) for case in cases],
        "recomputation_differs": [recomputation_differs(case, builds[case.group_size], rank) for case in cases[::5]],
    }
    whole_world = [case for case in cases if case.precision == "float64" and case.group_size is None]
    for name, plant in PLANTED_BUGS.items():
        with plant():
            report[name] = [errors_of(case, builds[None](case.num_channels), rank) for case in whole_world[:12]]
    check_merging(rank, world_size)
    if world_size == 4:
        check_groups_merge()
    with pytest.raises(ValueError, match=f"norm_group_size is 5, .* the world size, {world_size}; choose"):
        build_norm("sync_batch", 5)
    return report


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    """By world size, what every rank found."""
    return run_worlds(__file__, WORLD_SIZES, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(params=WORLD_SIZES)
def reports(request: pytest.FixtureRequest, worlds: dict[int, list[dict]]) -> list[dict]:
    """What every rank of one world found."""
    return worlds[request.param]


def accepted(errors_of_cases: list[dict[str, float]]) -> bool:
    """The check that the real code passes and every planted bug must fail."""
    return all(error < 1 for errors in errors_of_cases for error in errors.values())


def test_outputs_gradients_and_buffers_equal_one_process_with_all_rows(reports):
    """The buffers of ranks that share statistics in every bit too."""
    for report in reports:
        assert accepted(report["right"]), report["right"]


def test_recomputation_gives_the_same_bits_and_moves_running_statistics_once(reports):
    assert not any(differ for report in reports for differ in report["recomputation_differs"])


@pytest.mark.parametrize("bug", PLANTED_BUGS)
def test_the_check_rejects_a_planted_bug(worlds, bug):
    for world_size in WORLD_SIZES[1:]:
        assert not accepted(worlds[world_size][0][bug])


if __name__ == "__main__":
    visit_worlds(WORLD_SIZES, Path(sys.argv[1]), run_world)
