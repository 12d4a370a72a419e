"""Cross-entropy against a plain sum over voxels."""

import math

import pytest
import torch
import torch.nn.functional as F

from t4p.data.labels import IGNORED
from t4p.losses.segmentation import balanced_cross_entropy


def random_case(seed, num_voxels=50, num_labels=4):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_voxels, num_labels, generator=generator, dtype=torch.float64).requires_grad_()
    skew = torch.rand(num_labels + 1, generator=generator) ** 3
    labels = torch.multinomial(skew, num_voxels, replacement=True, generator=generator) - 1
    return scores, labels


def by_hand(scores, labels, balance):
    rows = [row for row in range(len(labels)) if labels[row] != IGNORED]
    counts = {label: sum(int(labels[row]) == label for row in rows) for label in range(scores.shape[1])}
    weight = {label: (count / len(rows)) ** -balance for label, count in counts.items() if count}
    losses = [-weight[int(labels[row])] * scores[row].log_softmax(0)[labels[row]] for row in rows]
    return sum(losses) / sum(weight[int(labels[row])] for row in rows)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(40))
def test_the_loss_and_its_gradient_are_the_weighted_mean(seed, balance):
    scores, labels = random_case(seed)
    (labels != IGNORED).any() or pytest.fail("a case without labels tests nothing")
    loss = balanced_cross_entropy(scores, labels, balance)
    wanted = by_hand(scores, labels, balance)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    (found,) = torch.autograd.grad(loss, scores)
    (gradient,) = torch.autograd.grad(wanted, scores)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("seed", range(40))
def test_a_class_that_is_not_asked_is_in_no_softmax_and_pushed_nowhere(seed):
    scores, labels = random_case(seed, num_labels=6)
    asked = torch.zeros(6, dtype=torch.bool)
    asked[[0, 2, 5]] = True
    labels = torch.where(asked[labels], labels, IGNORED)
    assert (labels != IGNORED).any(), "a case without labels tests nothing"
    loss = balanced_cross_entropy(scores, labels, 0.5, asked)
    renamed = torch.tensor([0, IGNORED, 1, IGNORED, IGNORED, 2])[labels]
    renamed[labels == IGNORED] = IGNORED
    torch.testing.assert_close(loss, by_hand(scores[:, asked], renamed, 0.5), rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient[:, ~asked].any()
    assert gradient[:, asked].any()


def test_without_balance_it_is_torchs_own():
    scores, labels = random_case(0)
    torch.testing.assert_close(
        balanced_cross_entropy(scores, labels, 0.0), F.cross_entropy(scores, labels, ignore_index=IGNORED)
    )


def test_the_parts_of_classes_are_as_the_docstring_says():
    labels = torch.tensor([0] * 90 + [1] * 10)
    scores = torch.zeros(100, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(balanced_cross_entropy(scores, labels, 0.5), scores)
    parts = [gradient[labels == label].abs().sum() for label in range(2)]
    assert float(parts[0] / parts[1]) == pytest.approx(3, rel=1e-9)
    assert pytest.approx(1.05, abs=0.01) == 0.9**-0.5
    assert pytest.approx(3.2, abs=0.05) == 0.1**-0.5


@pytest.mark.parametrize("num_voxels", [0, 5])
def test_no_label_anywhere_is_a_loss_of_zero_that_can_be_differentiated(num_voxels):
    scores = torch.randn(num_voxels, 3, requires_grad=True)
    loss = balanced_cross_entropy(scores, torch.full((num_voxels,), IGNORED), 0.5)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_low_precision_scores_are_taken_to_float32():
    scores, labels = random_case(1)
    loss = balanced_cross_entropy(scores.detach().bfloat16(), labels, 0.5)
    assert loss.dtype == torch.float32
    assert math.isfinite(loss)
