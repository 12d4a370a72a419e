"""Matches against all permutations, the loss against a plain sum over queries."""

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F

from t4p.losses.instance import (
    UNMATCHED,
    InstanceWeights,
    MaskPredictions,
    decode_masks,
    instance_loss,
    match,
)

WEIGHTS = InstanceWeights(label=0.7, mask=1.3, dice=0.9, score=0.4, no_object=0.2)
NUM_LABELS = 3


def random_case(seed, groups_of_samples=(7, 0, 9), instances_of_samples=(3, 1, 2), num_queries=4):
    """Predictions of one layer, and (instance_of_group, label_of_instance, sample_of_instance,
    sample_of_group); the instances of a sample without a group cannot be seen."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return (2 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    num_samples, num_groups = len(groups_of_samples), sum(groups_of_samples)
    sample_of_group = torch.arange(num_samples).repeat_interleave(torch.tensor(groups_of_samples, dtype=torch.int64))
    sample_of_instance = torch.arange(num_samples).repeat_interleave(
        torch.tensor(instances_of_samples, dtype=torch.int64)
    )
    instance_of_group = torch.full((num_groups,), UNMATCHED)
    for group, sample in enumerate(sample_of_group.tolist()):
        choice = [UNMATCHED, *(sample_of_instance == sample).nonzero().squeeze(1).tolist()]
        instance_of_group[group] = choice[int(torch.randint(len(choice), (1,), generator=generator))]
    predictions = MaskPredictions(
        draw(num_samples, num_queries, NUM_LABELS + 1), draw(num_queries, num_groups), draw(num_samples, num_queries)
    )
    label_of_instance = torch.randint(NUM_LABELS, (len(sample_of_instance),), generator=generator)
    return predictions, (
        instance_of_group,
        label_of_instance,
        sample_of_instance,
        sample_of_group,
    )


def mask_parts(predictions, truth, query, instance):
    """Binary cross-entropy, Dice loss and IoU of a query with an instance, as plain sums over groups."""
    instance_of_group, _, sample_of_instance, sample_of_group = truth
    groups = (sample_of_group == sample_of_instance[instance]).nonzero().squeeze(1).tolist()
    entropy = both = sizes = common = either = 0
    for group in groups:
        logit = predictions.mask_logits[query, group]
        inside = int(instance_of_group[group]) == instance
        probability = logit.sigmoid()
        entropy = entropy - (probability if inside else 1 - probability).log() / len(groups)
        both = both + probability * inside
        sizes = sizes + probability + inside
        common += float(logit.detach()) > 0 and inside
        either += float(logit.detach()) > 0 or inside
    return entropy, 1 - 2 * both / sizes, common / either


def cost(predictions, truth, sample, query, instance):
    entropy, dice, _ = mask_parts(predictions, truth, query, instance)
    probability = predictions.class_logits[sample, query].softmax(0)[truth[1][instance]]
    return float((WEIGHTS.mask * entropy + WEIGHTS.dice * dice - WEIGHTS.label * probability).detach())


@pytest.mark.parametrize("num_queries", [4, 2])  # 2: fewer than a sample has instances
@pytest.mark.parametrize("seed", range(4))
def test_the_match_is_the_cheapest_of_all_assignments(seed, num_queries):
    predictions, truth = random_case(seed, num_queries=num_queries)
    found = match(predictions, *truth, WEIGHTS)
    visible = set(truth[0].tolist())
    for sample in range(3):
        instances = [m for m in range(6) if int(truth[2][m]) == sample and m in visible]
        if num_queries >= len(instances):
            ways = [dict(zip(queries, instances, strict=True)) for queries in permutations(range(4), len(instances))]
            ways = [way for way in ways if max(way, default=0) < num_queries]
        else:
            ways = [dict(enumerate(chosen)) for chosen in permutations(instances, num_queries)]
        costs = [sum(cost(predictions, truth, sample, q, m) for q, m in way.items()) for way in ways]
        assert {q: m for q, m in enumerate(found[sample].tolist()) if m != UNMATCHED} == ways[costs.index(min(costs))]
    assert (found != UNMATCHED).any()


def test_the_loss_and_its_gradients_are_the_plain_sums_over_queries_and_layers():
    cases = [random_case(seed) for seed in (0, 1)]
    layers, truth = [predictions for predictions, _ in cases], cases[0][1]
    classes = masks = scores = weight = pairs = 0
    for layer in layers:
        matched = match(layer, *truth, WEIGHTS)
        for sample, row in enumerate(matched.tolist()):
            for query, instance in enumerate(row):
                label = NUM_LABELS if instance == UNMATCHED else int(truth[1][instance])
                own = WEIGHTS.no_object if instance == UNMATCHED else 1
                classes = classes - own * layer.class_logits[sample, query].log_softmax(0)[label]
                weight += own
                if instance != UNMATCHED:
                    entropy, dice, iou = mask_parts(layer, truth, query, instance)
                    masks = masks + WEIGHTS.mask * entropy + WEIGHTS.dice * dice
                    scores = scores + (layer.scores[sample, query].sigmoid() - iou) ** 2
                    pairs += 1
    # Each layer is divided by its own number, which is half of both layers'.
    wanted = [
        2 * WEIGHTS.label * classes / weight,
        2 * masks / pairs,
        2 * WEIGHTS.score * scores / pairs,
    ]
    loss, *parts = instance_loss(layers, *truth, WEIGHTS)
    torch.testing.assert_close(torch.stack(parts), torch.stack(wanted), rtol=1e-10, atol=0)
    torch.testing.assert_close(loss, sum(wanted), rtol=1e-10, atol=0)
    inputs = [tensor for layer in layers for tensor in layer]
    for found, right in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(sum(wanted), inputs), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-12)


def test_what_is_right_and_certain_costs_nothing():
    _, truth = random_case(2, (8, 8), (2, 2), num_queries=2)
    instance_of_group, label_of_instance, _, sample_of_group = truth
    # The second query of either sample answers its first instance: masks are in no order.
    order = torch.tensor([[1, 0], [3, 2]])
    inside = torch.stack([instance_of_group == order[sample_of_group, query] for query in range(2)])
    predictions = MaskPredictions(
        60.0 * F.one_hot(label_of_instance[order], NUM_LABELS + 1), 80.0 * inside - 40, torch.full((2, 2), 40.0)
    )
    assert torch.equal(match(predictions, *truth, WEIGHTS), order)
    loss, *_ = instance_loss([predictions], *truth, WEIGHTS)
    assert float(loss) < 1e-6


@pytest.mark.parametrize(
    ("groups", "instances"), [((), ()), ((0, 0), (0, 0)), ((5, 4), (0, 0)), ((0, 4), (2, 0)), ((0,), (3,))]
)
def test_where_nothing_can_be_found_only_labels_are_learnt_and_everything_has_a_gradient(groups, instances):
    predictions, truth = random_case(0, groups, instances)
    loss, loss_class, loss_mask, loss_score = instance_loss([predictions, predictions], *truth, WEIGHTS)
    loss.backward()
    assert (loss_class.item() > 0) == (len(groups) > 0)
    assert loss_mask.item() == loss_score.item() == 0
    for tensor in predictions:
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()


def test_predictions_that_are_not_numbers_are_told_by_the_loss():
    predictions, truth = random_case(0)
    broken = predictions._replace(mask_logits=predictions.mask_logits * torch.nan)
    assert instance_loss([broken], *truth, WEIGHTS)[0].isnan()


def test_low_precision_predictions_are_taken_to_float32():
    predictions, truth = random_case(0)
    low = MaskPredictions(*(tensor.detach().bfloat16() for tensor in predictions))
    terms = instance_loss([low], *truth, WEIGHTS)
    assert [term.dtype for term in terms] == [torch.float32] * 4


def test_a_decoded_mask_scores_label_times_iou_times_certainty():
    predictions, truth = random_case(3)
    predictions.mask_logits.data[1, :7] = -1  # empty in sample 0, not in sample 2
    sample_of_group = truth[-1]
    wanted = []
    for query in range(4):
        logits = predictions.mask_logits[query, :7]
        inside = logits > 0
        for label in range(NUM_LABELS):
            probability = predictions.class_logits[0, query].softmax(0)[label]
            score = probability * predictions.scores[0, query].sigmoid() * logits.sigmoid()[inside].mean()
            wanted.append((score.item(), label, inside.tolist()))
    wanted = sorted((entry for entry in wanted if any(entry[2])), key=lambda entry: -entry[0])
    masks, class_ids, scores = decode_masks(predictions, 0, sample_of_group)
    assert scores.tolist() == pytest.approx([entry[0] for entry in wanted])
    assert class_ids.tolist() == [entry[1] for entry in wanted]
    assert masks.tolist() == [entry[2] for entry in wanted]
    assert len(wanted) == 9
    for all_of_them, best in zip(
        (masks, class_ids, scores), decode_masks(predictions, 0, sample_of_group, 5), strict=True
    ):
        assert torch.equal(all_of_them[:5], best)
    assert decode_masks(predictions, 1, sample_of_group)[0].shape == (0, 0)
    assert decode_masks(predictions, 2, sample_of_group)[0].shape == (12, 9)
