"""Learnable prompts: at their start the template's own features, then whatever the tokens learn, and nothing else."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from t4p.config.labels import words_of
from t4p.errors import ClipError
from t4p.models.clip import load_towers
from t4p.models.prompts import PromptedLabels

TINY_RN = str(Path(__file__).parents[4] / "configs" / "clip" / "tiny-rn.json")
LABELS = ("chair", "dining table", "wall")
TEMPLATE = "point cloud of a {}"


@pytest.fixture(scope="module")
def towers():
    return load_towers(TINY_RN, "random", seed=3)


@pytest.mark.parametrize("template", [TEMPLATE, "a photo of a {} in a room", "a {}"])
def test_at_the_start_they_are_the_template(towers, template):
    prompted = PromptedLabels(towers, words_of(LABELS), template, None)
    torch.testing.assert_close(
        prompted.embed(prompted.initial_tokens), towers.encode_labels(LABELS, template), rtol=0, atol=1e-6
    )


def test_the_number_of_tokens_can_be_chosen(towers):
    torch.manual_seed(0)
    prompted = PromptedLabels(towers, words_of(LABELS), TEMPLATE, 7)
    assert prompted.initial_tokens.shape == (7, 32)
    embedded = prompted.embed(prompted.initial_tokens)
    assert embedded.shape == (3, 64)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))


def test_every_token_moves_every_label_and_the_gradient_is_right(towers):
    prompted = PromptedLabels(towers, words_of(LABELS), TEMPLATE, None)
    tokens = prompted.initial_tokens.clone().requires_grad_()
    direction = F.normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    (gradient,) = torch.autograd.grad((prompted.embed(tokens) * direction).sum(), tokens)
    assert (gradient.norm(dim=1) > 0).all()
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = ((prompted.embed(tokens + sign * step) * direction).sum() for sign in (1, -1))
    assert float(ahead - behind) / 2e-3 == pytest.approx(float(gradient.norm()), rel=1e-2)


def test_the_tower_is_left_as_it_was(towers):
    prompted = PromptedLabels(towers, words_of(LABELS), TEMPLATE, None)
    before = towers.encode_labels(LABELS, TEMPLATE)
    tokens = torch.randn_like(prompted.initial_tokens).requires_grad_()
    prompted.embed(tokens).sum().backward()
    assert all(parameter.grad is None for parameter in towers.parameters())
    torch.testing.assert_close(towers.encode_labels(LABELS, TEMPLATE), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("labels", "template", "num_tokens", "message"),
    [
        (LABELS, "point cloud", None, r"must contain \{\} exactly once"),
        (LABELS, "{} of a room", None, r"without a word before the label .*set model\.prompt_tokens"),
        (("a " * 14,), TEMPLATE, None, r"tokens and the text tower of .*tiny-rn\.json reads 16; shorten the label"),
        (LABELS, TEMPLATE, 40, r"tokens and the text tower of .* reads 16"),
    ],
)
def test_what_cannot_be_asked_is_refused(towers, labels, template, num_tokens, message):
    with pytest.raises(ClipError, match=message):
        PromptedLabels(towers, words_of(labels), template, num_tokens)


SYNONYMS = {"seat": ("chair", "stool", "bench"), "dining table": ("dining table",), "wall": ("wall", "partition")}


def test_a_label_with_synonyms_is_the_mean_of_what_each_is_behind_the_tokens(towers):
    prompted = PromptedLabels(towers, SYNONYMS, TEMPLATE, None)
    assert prompted.labels == ("seat", "dining table", "wall")
    tokens = torch.randn_like(prompted.initial_tokens).requires_grad_()
    found = prompted.embed(tokens)
    for row, words in zip(found, SYNONYMS.values(), strict=True):
        each = PromptedLabels(towers, words_of(words), TEMPLATE, None).embed(tokens)
        torch.testing.assert_close(row, F.normalize(each.mean(dim=0), dim=0), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(found[0].square()[:32].sum(), tokens)
    assert (gradient.norm(dim=1) > 0).all(), "every token moves the mean"


def test_synonyms_through_the_template_are_the_prompts_at_their_start(towers):
    prompted = PromptedLabels(towers, SYNONYMS, TEMPLATE, None)
    found = towers.encode_synonyms(SYNONYMS, TEMPLATE)
    torch.testing.assert_close(prompted.embed(prompted.initial_tokens), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    alone = towers.encode_labels([word for words in SYNONYMS.values() for word in words], TEMPLATE)
    assert torch.equal(found[1], alone[3]), "one word keeps its bits"
    plain = towers.encode_synonyms(words_of(LABELS), TEMPLATE)
    assert torch.equal(plain, towers.encode_labels(LABELS, TEMPLATE))
