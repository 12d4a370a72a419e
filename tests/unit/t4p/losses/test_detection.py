"""Whose a location is, against the rule written out; and the two losses by hand."""

import math

import pytest
import torch

from t4p.losses.detection import NO_BOX, assign_locations, detection_loss


def random_case(seed, num_locations=60, num_boxes=7):
    """Whole metres, so that many distances are equal; three samples, the last without a box."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high, *shape):
        return torch.randint(0, high, shape, generator=generator)

    locations = integers(5, num_locations, 3).float(), integers(3, num_locations), integers(2, num_locations).bool()
    boxes = torch.cat([integers(5, num_boxes, 3), integers(5, num_boxes, 4)], dim=1).float()
    return *locations, boxes, integers(2, num_boxes), integers(2, num_boxes).bool()


def by_the_rule(centers, sample_of_location, is_coarse, boxes, sample_of_box, is_coarse_box, top_k):
    wishes = [[] for _ in centers]
    for box in range(len(boxes)):
        candidates = [
            (float((centers[location] - boxes[box, :3]).square().sum()), location)
            for location in range(len(centers))
            if sample_of_location[location] == sample_of_box[box] and is_coarse[location] == is_coarse_box[box]
        ]
        for distance, location in sorted(candidates)[:top_k]:
            wishes[location].append((distance, box))
    return torch.tensor([min(wish)[1] if wish else NO_BOX for wish in wishes])


@pytest.mark.parametrize("top_k", [1, 4, 40])
def test_the_nearest_locations_of_sample_and_level_are_a_boxs(top_k):
    for seed in range(20):
        case = random_case(seed)
        assert torch.equal(assign_locations(*case, top_k), by_the_rule(*case, top_k))


def test_a_box_without_a_location_on_its_level_has_none():
    centers = torch.zeros(2, 3)
    boxes = torch.ones(2, 7)
    found = assign_locations(
        centers,
        torch.tensor([0, 1]),
        torch.tensor([True, True]),
        boxes,
        torch.tensor([0, 2]),
        torch.tensor([False] * 2),
        3,
    )
    assert found.tolist() == [NO_BOX, NO_BOX]
    nothing = assign_locations(
        centers,
        torch.tensor([0, 1]),
        torch.tensor([True, True]),
        boxes[:0],
        torch.zeros(0).long(),
        torch.zeros(0).bool(),
        3,
    )
    assert nothing.tolist() == [NO_BOX, NO_BOX]


def test_the_losses_are_those_of_a_sum_by_hand():
    probability = torch.tensor([[0.9, 0.2], [0.3, 0.4], [0.1, 0.05]], dtype=torch.float64)
    boxes = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [3, 0, 0, 2, 2, 2, 0], [9, 9, 9, 1, 1, 1, 0]], dtype=torch.float64)
    true = torch.tensor([[0, 0, 0, 2, 1, 1, 0], [0, 0, 0, 2, 2, 2, math.pi]], dtype=torch.float64)
    loss_class, loss_box = detection_loss(
        probability.logit(), boxes, torch.tensor([0, 1, NO_BOX]), true, torch.tensor([0, 1])
    )

    def of_box(p):
        return 0.25 * (1 - p) ** 2 * -math.log(p)

    def of_none(p):
        return 0.75 * p**2 * -math.log(1 - p)

    by_hand = of_box(0.9) + of_none(0.2) + of_none(0.3) + of_box(0.4) + of_none(0.1) + of_none(0.05)
    assert loss_class.item() == pytest.approx(by_hand / 2, rel=1e-12)
    # Half of the true box is covered; two boxes 3 m apart in what is 5 x 2 x 2 m.
    assert loss_box.item() == pytest.approx((0.5 + 1 + 9 / 33) / 2, rel=1e-12)


def test_a_box_apart_and_turned_is_drawn_to_its_target():
    boxes = torch.tensor([[5.0, 0, 0, 1, 1, 1, 0.7]], requires_grad=True)
    true = torch.tensor([[0.0, 0, 0, 1, 2, 1, -0.2]])
    _, loss = detection_loss(torch.zeros(1, 1), boxes, torch.tensor([0]), true, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, boxes)
    assert loss.item() > 1
    assert gradient[0, 0] > 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("num_locations", [0, 5])
def test_no_box_and_no_location_leave_a_graph(num_locations):
    logits = torch.randn(num_locations, 3, requires_grad=True)
    boxes = torch.rand(num_locations, 7, requires_grad=True)
    none = torch.full((num_locations,), NO_BOX)
    loss_class, loss_box = detection_loss(logits, boxes, none, torch.zeros(0, 7), torch.zeros(0).long())
    (loss_class + loss_box).backward()
    assert loss_box.item() == 0
    assert (loss_class.item() > 0) == (num_locations > 0), "what is nowhere is learnt too"
    assert boxes.grad is not None
    assert not boxes.grad.any()
    assert logits.grad is not None


def test_low_precision_logits_are_taken_to_float32():
    logits = torch.tensor([[2.0, -3.0]], dtype=torch.bfloat16)
    boxes = torch.tensor([[0, 0, 0, 1, 1, 1, 0.0]])
    loss_class, _ = detection_loss(logits, boxes, torch.tensor([0]), boxes, torch.tensor([1]))
    assert loss_class.dtype == torch.float32
