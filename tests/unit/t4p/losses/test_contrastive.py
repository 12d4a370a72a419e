import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import t4p.losses.contrastive as contrastive
from t4p.losses.contrastive import contrastive_loss

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
        yield case, {"row_chunk": 1 + draw(24), "column_chunk": 1 + draw(24)}


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


def streamed_loss(case: Case, **chunks: int) -> Tensor:
    return contrastive_loss(*case.leaves(), case.point_ids, case.pixel_ids, **chunks)


def check_against_reference(case: Case, chunks: dict[str, int], tolerance: float = 1e-12) -> None:
    found = value_and_gradients(streamed_loss(case, **chunks), case)
    exact = case.to(torch.float64)
    wanted = value_and_gradients(reference_loss(exact), exact)
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
    for case, chunks in random_cases(seed=0, count=300):
        check_against_reference(case, chunks)


def test_float32_equals_the_float64_reference_to_1e_5():
    for case, chunks in random_cases(seed=1, count=100):
        check_against_reference(case.to(torch.float32), chunks, tolerance=1e-5)


def test_the_reference_check_rejects_a_missing_duplicate_mask(monkeypatch):
    monkeypatch.setattr(contrastive._Tiles, "_mask_duplicates", lambda *_: None)
    case = random_case(torch.Generator().manual_seed(0), num_pairs=20, dim=8, num_ids=5, scale=14.3)
    with pytest.raises(AssertionError, match="loss"):
        check_against_reference(case, {})


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
        check_against_reference(case, {})
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
        loss, *gradients = value_and_gradients(streamed_loss(case, row_chunk=2, column_chunk=3), case)
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
    loss, *gradients = value_and_gradients(streamed_loss(case, row_chunk=3, column_chunk=5), case)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


MEMORY_SCRIPT = """
import json, resource, sys
import torch
from t4p.losses.contrastive import contrastive_loss
def unit(rows, generator):
    embeddings = torch.randn(rows, 64, generator=generator)
    return torch.nn.functional.normalize(embeddings, dim=1).requires_grad_()
def step(num_pairs):
    generator = torch.Generator().manual_seed(0)
    leaves = unit(num_pairs, generator), unit(num_pairs, generator), torch.tensor(14.3, requires_grad=True)
    ids = torch.arange(num_pairs)
    # Smaller tiles than by default: they stay in the processor's cache.
    contrastive_loss(*leaves, ids // 2, ids // 3, row_chunk=512, column_chunk=2048).backward()
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
        ({"row_chunk": 0}, "row_chunk and column_chunk must be at least 1, got 0"),
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
