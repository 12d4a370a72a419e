import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import t4p.losses.contrastive as contrastive
from t4p.losses.contrastive import contrastive_loss, contrastive_loss_of_ends, distinct_ends

REPOSITORY = Path(contrastive.__file__).parents[2]


@dataclass(frozen=True, eq=False)
class Case:
    points: Tensor
    pixels: Tensor
    logit_scale: Tensor
    point_ids: Tensor
    pixel_ids: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.points, self.pixels, self.logit_scale

    def to(self, dtype: torch.dtype) -> "Case":
        leaves = (leaf.detach().to(dtype).requires_grad_() for leaf in self.leaves())
        return Case(*leaves, self.point_ids, self.pixel_ids)


def random_case(generator: torch.Generator, num_pairs: int, dim: int, num_ids: int, scale: float) -> Case:
    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64), dim=1).requires_grad_()

    ids = torch.randint(0, max(num_ids, 1), (2, num_pairs), generator=generator)
    if num_ids == 0:  # no duplicates at all
        ids = torch.stack([torch.randperm(num_pairs, generator=generator) for _ in range(2)])
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    return Case(unit(num_pairs), unit(num_pairs), logit_scale, ids[0], ids[1])


def random_cases(seed: int, count: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(0, high, (), generator=generator))

    for index in range(count):
        num_pairs = index % 3 if index < 30 else draw(40)
        scale = [1.0, 14.3, 100.0][draw(3)]
        num_ids = [0, 1, 3, num_pairs][draw(4)]
        case = random_case(generator, num_pairs, 1 + draw(20), num_ids, scale)
        yield case, (4 + draw(24), 4 + draw(24))


def reference_loss(case: Case) -> Tensor:
    """The whole matrix, by autograd."""
    if len(case.points) == 0:
        return (case.points.sum() + case.pixels.sum()) * 0 + case.logit_scale.sum() * 0
    logits = case.logit_scale * case.points @ case.pixels.T
    same_point = case.point_ids[:, None] == case.point_ids[None]
    same_pixel = case.pixel_ids[:, None] == case.pixel_ids[None]
    duplicates = (same_point | same_pixel) & ~torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(duplicates, -torch.inf)
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def value_and_gradients(loss: Tensor, case: Case) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, case.leaves())]


def streamed_loss(case: Case, chunks: tuple[int, int] = (1024, 4096)) -> Tensor:
    with patch.multiple(contrastive, ROW_CHUNK=chunks[0], COLUMN_CHUNK=chunks[1]):
        return contrastive_loss(*case.leaves(), case.point_ids, case.pixel_ids)


def check_against_reference(case: Case, chunks: tuple[int, int] = (1024, 4096), tolerance: float = 1e-12) -> None:
    exact = case.to(torch.float64)
    found = value_and_gradients(streamed_loss(case, chunks), case)
    compare(found, value_and_gradients(reference_loss(exact), exact), case, tolerance)


def compare(found: list[Tensor], wanted: list[Tensor], case: "Case | EndsCase", tolerance: float) -> None:
    # Gradients of the embeddings are of the size of the scale.
    sizes = (1.0, *[max(1.0, case.logit_scale.item())] * 2, 1.0)
    for name, ours, reference, size in zip(
        ("loss", "points", "pixels", "logit_scale"), found, wanted, sizes, strict=True
    ):
        assert ours.dtype == case.points.dtype
        assert ours.shape == reference.shape
        torch.testing.assert_close(
            ours.double(),
            reference,
            rtol=tolerance,
            atol=tolerance * size,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_loss_and_every_gradient_equal_the_float64_reference():
    for case, chunks in random_cases(seed=0, count=200):
        check_against_reference(case, chunks)


def test_float32_equals_the_float64_reference_to_1e_5():
    for case, chunks in random_cases(seed=1, count=60):
        check_against_reference(case.to(torch.float32), chunks, tolerance=1e-5)


def test_the_reference_check_rejects_a_missing_duplicate_mask(monkeypatch):
    monkeypatch.setattr(contrastive.Duplicates, "fill_", lambda *_: None)
    case = random_case(torch.Generator().manual_seed(0), num_pairs=20, dim=8, num_ids=5, scale=14.3)
    with pytest.raises(AssertionError, match="loss"):
        check_against_reference(case)


def test_the_reference_check_rejects_a_backward_without_the_columns_softmax(monkeypatch):
    right = contrastive._exp_
    calls = []

    def without_the_fourth(differences: Tensor) -> Tensor:
        # One tile: rows and columns forward, rows and columns backward.
        calls.append(None)
        return right(differences) * (0 if len(calls) == 4 else 1)

    monkeypatch.setattr(contrastive, "_exp_", without_the_fourth)
    case = random_case(torch.Generator().manual_seed(0), num_pairs=20, dim=8, num_ids=0, scale=14.3)
    with pytest.raises(AssertionError, match="points"):
        check_against_reference(case)
    assert len(calls) == 4


def test_no_pair_anywhere_gives_zero_with_a_graph():
    case = random_case(torch.Generator(), num_pairs=0, dim=8, num_ids=0, scale=14.3)
    loss = streamed_loss(case)
    assert loss.item() == 0
    points, pixels, logit_scale = torch.autograd.grad(loss, case.leaves())
    assert points.shape == pixels.shape == (0, 8)
    assert logit_scale.item() == 0


def test_one_pair_and_only_duplicates_have_no_negative_and_no_loss():
    for num_pairs in (1, 7):
        case = random_case(torch.Generator().manual_seed(3), num_pairs, dim=8, num_ids=1, scale=14.3)
        loss, *gradients = value_and_gradients(streamed_loss(case, (2, 3)), case)
        assert abs(loss.item()) < 1e-14
        assert all(gradient.abs().max() < 1e-13 for gradient in gradients)


def test_duplicates_share_a_point_or_a_pixel_in_both_directions():
    embeddings = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64), dim=1)
    # Pairs 0 and 1 share the point, pairs 1 and 2 the pixel: only 0 and 2 are negatives of each other.
    ids = torch.tensor([7, 7, 8]), torch.tensor([1, 2, 2])
    loss = contrastive_loss(embeddings, embeddings, torch.tensor(2.0), *ids)
    cosine = embeddings[0] @ embeddings[2]
    expected = torch.log1p(torch.exp(2 * cosine - 2)) * 2 / 3
    torch.testing.assert_close(loss, expected)


@dataclass(frozen=True, eq=False)
class EndsCase:
    """Distinct ends with the pairs among them; `spread` is the same with one row of both sides per pair."""

    points: Tensor
    pixels: Tensor
    logit_scale: Tensor
    pairs: Tensor

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.points, self.pixels, self.logit_scale

    def spread(self) -> Case:
        point, pixel = self.pairs
        return Case(self.points[point], self.pixels[pixel], self.logit_scale, point, pixel)

    def to(self, dtype: torch.dtype) -> "EndsCase":
        return EndsCase(*(leaf.detach().to(dtype).requires_grad_() for leaf in self.leaves()), self.pairs)


def ends_case(generator: torch.Generator, pairs: Tensor, dim: int, scale: float, alike: float = 0.0) -> EndsCase:
    """Ends at random; `alike` draws every pixel towards a point of its pairs, as training does (1), or away (-1)."""
    ends = distinct_ends(pairs)
    points, pixels = (
        F.normalize(torch.randn(len(rows), dim, generator=generator, dtype=torch.float64), dim=1) for rows in ends[:2]
    )
    pixels[ends.pairs[1]] += alike * 4 * points[ends.pairs[0]]
    logit_scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    return EndsCase(points.requires_grad_(), F.normalize(pixels, dim=1).requires_grad_(), logit_scale, ends.pairs)


def random_ends_cases(seed: int, count: int):
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> int:
        return int(torch.randint(0, high, (), generator=generator))

    for index in range(count):
        num_pairs = index % 4 if index < 40 else draw(60)
        ends = torch.tensor([1 + draw(12), 1 + draw(12)])  # few: some pairs are there twice
        pairs = (torch.rand(2, num_pairs, generator=generator) * ends[:, None]).long()
        scale = [1.0, 14.3, 40.0, 100.0][draw(4)]
        case = ends_case(generator, pairs, 1 + draw(20), scale, alike=draw(3) - 1.0)
        yield case, (3 + draw(12), 3 + draw(12))


def check_ends_against_reference(
    case: EndsCase, chunks: tuple[int, int] = (1024, 4096), tolerance: float = 1e-12
) -> None:
    with patch.multiple(contrastive, ROW_CHUNK=chunks[0], COLUMN_CHUNK=chunks[1]):
        loss = contrastive_loss_of_ends(*case.leaves(), case.pairs)
    exact = case.to(torch.float64)
    compare(
        value_and_gradients(loss, case), value_and_gradients(reference_loss(exact.spread()), exact), case, tolerance
    )


def test_the_loss_of_distinct_ends_equals_the_reference_with_a_row_per_pair():
    for case, chunks in random_ends_cases(seed=2, count=240):
        check_ends_against_reference(case, chunks)


def test_the_loss_of_distinct_ends_in_float32_equals_the_float64_reference_to_1e_5():
    for case, chunks in random_ends_cases(seed=3, count=60):
        check_ends_against_reference(case.to(torch.float32), chunks, tolerance=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("alike", [-1.0, 0.0, 1.0])
def test_what_is_left_of_a_row_beside_its_pairs_keeps_all_its_digits(dtype, scale, alike):
    """A pixel with 200 points, whose logits are thousands of times what else a row has, or as little of it."""
    many = torch.stack([torch.arange(200), torch.zeros(200, dtype=torch.long)])
    few = torch.tensor([[0, 1, 200, 200], [1, 1, 1, 2]])
    generator = torch.Generator().manual_seed(11)
    case = ends_case(generator, torch.cat([many, few], dim=1), 32, scale, alike)
    check_ends_against_reference(case.to(dtype), tolerance=1e-12 if dtype == torch.float64 else 2e-5)


def test_one_pair_however_often_and_pairs_that_share_an_end_have_no_negative_and_no_loss():
    generator = torch.Generator().manual_seed(12)
    for pairs in ([[4], [7]], [[4, 4, 4], [7, 7, 7]], [[1, 2, 3], [5, 5, 5]], [[1, 1, 1], [5, 6, 7]]):
        for dtype in (torch.float32, torch.float64):
            case = ends_case(generator, torch.tensor(pairs), 8, 100.0, alike=-1.0).to(dtype)
            loss, *gradients = value_and_gradients(contrastive_loss_of_ends(*case.leaves(), case.pairs), case)
            assert abs(loss.item()) < 1e-13
            assert all(gradient.abs().max() < 1e-11 for gradient in gradients)


def test_no_end_anywhere_gives_zero_with_a_graph():
    case = ends_case(torch.Generator(), torch.zeros(2, 0, dtype=torch.long), 8, 14.3)
    loss = contrastive_loss_of_ends(*case.leaves(), case.pairs)
    assert loss.item() == 0
    assert [g.shape for g in torch.autograd.grad(loss, case.leaves())] == [(0, 8), (0, 8), ()]


def test_distinct_ends_name_every_end_once():
    pairs = torch.tensor([[9, 4, 9, 9], [3, 3, 0, 3]])
    ends = distinct_ends(pairs)
    assert ends.points.tolist() == [4, 9]
    assert ends.pixels.tolist() == [0, 3]
    assert torch.equal(torch.stack([ends.points[ends.pairs[0]], ends.pixels[ends.pairs[1]]]), pairs)


def test_distinct_ends_with_huge_scales_stay_finite():
    for case, chunks in random_ends_cases(seed=4, count=30):
        with patch.multiple(contrastive, ROW_CHUNK=chunks[0], COLUMN_CHUNK=chunks[1]):
            large = EndsCase(*case.to(torch.float32).leaves()[:2], torch.tensor(2000.0, requires_grad=True), case.pairs)
            loss, *gradients = value_and_gradients(contrastive_loss_of_ends(*large.leaves(), large.pairs), large)
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_reference_check_rejects_columns_that_count_once_whatever_number_of_pairs_they_have(monkeypatch):
    right = contrastive.all_gather_rows
    monkeypatch.setattr(
        contrastive,
        "all_gather_rows",
        lambda rows, counts: right(torch.ones_like(rows) if rows.ndim == 1 else rows, counts),
    )
    pairs = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 2]])
    with pytest.raises(AssertionError, match="loss"):
        check_ends_against_reference(ends_case(torch.Generator().manual_seed(0), pairs, 8, 14.3))


def test_the_reference_check_rejects_pairs_that_are_negatives_of_those_with_the_same_pixel(monkeypatch):
    right = contrastive._cross_entropy
    monkeypatch.setattr(
        contrastive, "_cross_entropy", lambda lse, end, weights, *rest: right(lse, end, weights + 1, *rest)
    )
    pairs = torch.tensor([[0, 1, 2, 2], [0, 0, 1, 2]])
    with pytest.raises(AssertionError, match="loss"):
        check_ends_against_reference(ends_case(torch.Generator().manual_seed(0), pairs, 8, 14.3))


def test_logit_scale_of_one_element_keeps_its_shape_in_the_gradient():
    case = random_case(torch.Generator().manual_seed(4), 9, 5, 3, 14.3)
    logit_scale = case.logit_scale.detach().reshape(1).requires_grad_()
    loss = contrastive_loss(case.points, case.pixels, logit_scale, case.point_ids, case.pixel_ids)
    assert loss.shape == ()
    assert torch.autograd.grad(loss, logit_scale)[0].shape == (1,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_embeddings_are_computed_in_float32_and_get_gradients_of_their_own_type(dtype):
    case = random_case(torch.Generator().manual_seed(6), 50, 16, 10, 14.3).to(dtype)
    loss, *gradients = value_and_gradients(streamed_loss(case), case)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, streamed_loss(case.to(torch.float32)).detach())
    assert {gradient.dtype for gradient in gradients} == {dtype}


def test_autocast_changes_nothing():
    case = random_case(torch.Generator().manual_seed(7), 50, 16, 10, 14.3).to(torch.float32)
    wanted = value_and_gradients(streamed_loss(case), case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradients(streamed_loss(case), case)
    for ours, reference in zip(found, wanted, strict=True):
        assert torch.equal(ours, reference)


def test_one_frozen_side_still_trains_the_other_and_the_temperature():
    case = random_case(torch.Generator().manual_seed(8), 30, 8, 6, 14.3)
    wanted = value_and_gradients(streamed_loss(case), case)
    frozen_pixels = contrastive_loss(
        case.points, case.pixels.detach(), case.logit_scale, case.point_ids, case.pixel_ids
    )
    points, logit_scale = torch.autograd.grad(frozen_pixels, (case.points, case.logit_scale))
    assert torch.equal(points, wanted[1])
    assert torch.equal(logit_scale, wanted[3])
    frozen_points = contrastive_loss(
        case.points.detach(), case.pixels, case.logit_scale, case.point_ids, case.pixel_ids
    )
    assert torch.equal(torch.autograd.grad(frozen_points, case.pixels)[0], wanted[2])


def test_gradients_scale_with_the_loss_weight_and_nothing_needs_a_graph():
    case = random_case(torch.Generator().manual_seed(9), 30, 8, 6, 14.3)
    once = value_and_gradients(streamed_loss(case), case)
    thrice = value_and_gradients(3 * streamed_loss(case), case)
    for single, triple in zip(once, thrice, strict=True):
        torch.testing.assert_close(3 * single, triple, rtol=1e-14, atol=1e-14)
    with torch.no_grad():
        loss = streamed_loss(case)
    assert not loss.requires_grad
    assert torch.equal(loss, once[0])


def test_embeddings_far_from_unit_norm_and_huge_scales_stay_finite():
    case = random_case(torch.Generator().manual_seed(10), 40, 4, 3, 1000.0).to(torch.float32)
    loss, *gradients = value_and_gradients(streamed_loss(case, (3, 5)), case)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


MEMORY_SCRIPT = """
import json, resource, sys
import torch
import t4p.losses.contrastive as contrastive
from t4p.losses.contrastive import contrastive_loss
contrastive.ROW_CHUNK, contrastive.COLUMN_CHUNK = 512, 2048  # they stay in the processor's cache
def unit(rows, generator):
    embeddings = torch.randn(rows, 64, generator=generator)
    return torch.nn.functional.normalize(embeddings, dim=1).requires_grad_()
def step(num_pairs):
    generator = torch.Generator().manual_seed(0)
    leaves = unit(num_pairs, generator), unit(num_pairs, generator), torch.tensor(14.3, requires_grad=True)
    ids = torch.arange(num_pairs)
    contrastive_loss(*leaves, ids // 2, ids // 3).backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
step(64)
before = peak()
step(int(sys.argv[1]))
print(json.dumps({"peak_bytes": peak() - before}))
"""


@pytest.mark.slow
def test_the_matrix_of_32k_pairs_is_never_allocated():
    # The whole matrix takes 4.3 GB in float32, one direction of it; inputs and gradients 34 MB.
    # Passive threads: on a machine that others use too, spinning at every barrier makes this take ten times as long.
    threads = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, "32768"],
        env=os.environ | threads | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_bytes"] < 300e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_embeddings": torch.ones(3, 4)}, r"row i of each .* got \(2, 4\) and \(3, 4\)"),
        ({"point_embeddings": torch.ones(2)}, r"must both be \(P, D\)"),
        ({"point_ids": torch.tensor([1])}, r"point_ids must be \(2,\) integers.*got torch.int64 \(1,\)"),
        ({"pixel_ids": torch.ones(2)}, r"pixel_ids must be \(2,\) integers.*got torch.float32"),
        ({"logit_scale": torch.ones(2)}, r"logit_scale must be a scalar, got shape \(2,\)"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "point_embeddings": torch.ones(2, 4),
        "pixel_embeddings": torch.ones(2, 4),
        "logit_scale": torch.tensor(1.0),
        "point_ids": torch.tensor([1, 2]),
        "pixel_ids": torch.tensor([1, 2]),
    }
    with pytest.raises(ValueError, match=message):
        contrastive_loss(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": torch.ones(3, 5)}, r"points must be \(U, D\) and pixels \(V, D\); got \(2, 4\) and \(3, 5\)"),
        ({"pairs": torch.tensor([0, 1])}, r"pairs must be \(2, P\) integers.*got torch.int64 \(2,\)"),
        ({"pairs": torch.ones(2, 1)}, r"pairs must be \(2, P\) integers.*got torch.float32"),
        ({"logit_scale": torch.ones(2)}, r"logit_scale must be a scalar, got shape \(2,\)"),
    ],
)
def test_bad_ends_are_named(change, message):
    arguments = {
        "points": torch.ones(2, 4),
        "pixels": torch.ones(3, 4),
        "logit_scale": torch.tensor(1.0),
        "pairs": torch.tensor([[0, 1], [2, 0]]),
    }
    with pytest.raises(ValueError, match=message):
        contrastive_loss_of_ends(**(arguments | change))
