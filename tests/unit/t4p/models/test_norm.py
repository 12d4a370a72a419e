"""Batch norm over rows, for any number of them."""

import pytest
import torch
from torch import nn

from t4p.models.norm import Recomputation, build_norm


def test_batch_norm_equals_torchs_own_and_moves_the_running_statistics():
    norm, expected = build_norm("batch")(5), nn.BatchNorm1d(5, eps=1e-5)
    features = torch.randn(30, 5) * 3 + 1
    torch.testing.assert_close(norm(features), expected(features))
    torch.testing.assert_close(norm.running_var, expected.running_var)
    torch.testing.assert_close(norm.eval()(features), expected.eval()(features))


@pytest.mark.parametrize("num_rows", [0, 1])
def test_too_few_rows_use_the_running_statistics_and_leave_them_alone(num_rows):
    norm = build_norm("batch")(3)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    output = norm(torch.full((num_rows, 3), 6.0))
    torch.testing.assert_close(output, torch.full((num_rows, 3), 2.0))
    output.sum().backward()
    assert norm.weight.grad.tolist() == pytest.approx([2.0 * num_rows] * 3, rel=1e-5)  # eps
    assert norm.bias.grad.tolist() == [float(num_rows)] * 3
    assert norm.running_mean.tolist() == [2.0] * 3
    assert norm.running_var.tolist() == [4.0] * 3
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("found", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_norm_computes_in_float32_or_better_under_autocast(found, wanted):
    norm = build_norm("batch")(3).to(torch.float64 if found == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert norm(torch.randn(8, 3).to(found)).dtype == wanted


def test_a_recomputation_may_be_entered_again_and_leaves_the_running_statistics_alone():
    norm = build_norm("batch")(3)
    features = torch.randn(8, 3)
    expected = norm(features)
    moved = [buffer.clone() for buffer in norm.buffers()]
    again = Recomputation()
    for _ in range(2):
        with again:
            assert torch.equal(norm(features), expected)
    assert all(torch.equal(a, b) for a, b in zip(norm.buffers(), moved, strict=True))
    norm(features)
    assert norm.num_batches_tracked == 2


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match="unknown norm 'group'; choose sync_batch, batch or layer"):
        build_norm("group")


def test_alone_a_group_of_one_is_plain_batch_norm_and_a_larger_one_is_refused():
    assert type(build_norm("sync_batch", 1)(3)) is type(build_norm("sync_batch")(3)) is type(build_norm("batch")(3))
    with pytest.raises(ValueError, match="norm_group_size is 2, which does not divide the world size, 1; choose"):
        build_norm("sync_batch", 2)
