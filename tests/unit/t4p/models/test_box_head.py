"""The detection head: where its locations are, what it begins with, and that it learns boxes by heart."""

import pytest
import torch
from torch.nn import functional as F

from t4p.config.plans import UNetPlan
from t4p.losses.detection import assign_locations, detection_loss
from t4p.losses.oriented_iou import paired_iou
from t4p.models.box_head import FIRST_SCORE, FIRST_SIZE, BoxHead, LocatedBoxes, propose
from t4p.models.norm import RowBatchNorm, RowLayerNorm
from t4p.models.sparse.pyramid import build_pyramid
from t4p.models.unet import SparseUNet

VOXEL_SIZE = 0.15
COARSE_SIZE = 4 * VOXEL_SIZE
CLIP_DIM = 8
PLAN = UNetPlan(8, 3, (8, 16), (1, 1), (12, 8), (1, 1))
TRUE_BOXES = torch.tensor(
    [[0.9, 0.8, 0.5, 0.7, 1.2, 0.9, 0.4], [2.4, 0.9, 0.3, 0.5, 0.5, 0.6, -0.5], [1.5, 2.3, 0.4, 1.4, 0.6, 0.7, 1.2]]
)


def build_head(norm=RowBatchNorm, oriented=True) -> BoxHead:
    torch.manual_seed(0)
    return BoxHead(
        12,
        16,
        16,
        CLIP_DIM,
        norm,
        oriented=oriented,
        logit_scale=10,
        coarse_voxel_size=COARSE_SIZE,
        sparse_backend="native",
    )


def some_text(num_labels=3):
    return F.normalize(torch.randn(num_labels, CLIP_DIM, generator=torch.Generator().manual_seed(1)), dim=1)


def some_levels(num_voxels=60):
    """Two levels of two samples, with negative coordinates: coarse_coords, coarse, fine_coords, fine."""
    generator = torch.Generator().manual_seed(2)
    coords = torch.randint(-6, 7, (num_voxels, 4), generator=generator, dtype=torch.int32)
    coords[:, 0] %= 2
    pyramid = build_pyramid("native", torch.unique(coords, dim=0), 2)
    coarse, fine = pyramid.coords(1), pyramid.coords(0)
    return (
        coarse,
        torch.randn(len(coarse), 16, generator=generator),
        fine,
        torch.randn(len(fine), 12, generator=generator),
    )


def scene_of(boxes):
    """Canonical voxels of the surfaces of boxes and of a floor, in one sample."""
    generator = torch.Generator().manual_seed(0)
    points = [torch.rand(1500, 3, generator=generator) * torch.tensor([3.2, 3.0, 0.01])]
    for box in boxes:
        on_cube = torch.rand(1500, 3, generator=generator) - 0.5
        axis = torch.randint(0, 3, (1500,), generator=generator)
        on_cube[torch.arange(1500), axis] = torch.randint(0, 2, (1500,), generator=generator) - 0.5
        x, y, z = (on_cube * box[3:6]).T
        cos, sin = box[6].cos(), box[6].sin()
        points.append(torch.stack([cos * x - sin * y, sin * x + cos * y, z], dim=1) + box[:3])
    cells = (torch.cat(points) / VOXEL_SIZE).floor().int()
    return torch.unique(F.pad(cells, (1, 0)), dim=0)


@pytest.mark.parametrize("oriented", [True, False])
def test_it_learns_the_boxes_of_a_scene_by_heart(oriented):
    boxes = TRUE_BOXES if oriented else TRUE_BOXES * torch.tensor([1, 1, 1, 1, 1, 1, 0])
    labels = torch.arange(3)
    is_coarse_box, sample_of_box = torch.tensor([True, False, True]), torch.zeros(3).long()
    coords = scene_of(boxes)
    pyramid = build_pyramid("native", coords, 3)
    head = build_head(oriented=oriented)
    network = SparseUNet(1, PLAN)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 2e-2)
    for _ in range(60):
        *_, skip, coarse = network.encode(pyramid, torch.ones(len(coords), 1))
        fine = network.decode_once(pyramid, coarse, skip)
        located = head(pyramid.coords(2), coarse, pyramid.coords(1), fine, some_text())
        box_of_location = assign_locations(*located[:3], boxes, sample_of_box, is_coarse_box, 6)
        loss = sum(detection_loss(*located[3:], box_of_location, boxes, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found, class_ids, scores = propose(located, 0)
    for label in range(3):
        best = scores.masked_fill(class_ids != label, 0).argmax()
        assert scores[best] > 0.5
        assert paired_iou(found[best, None], boxes[label, None]) > 0.5
    assert bool(found[:, 6].any()) == oriented


def test_locations_are_the_coarse_voxels_and_all_their_children():
    coarse_coords, coarse, fine_coords, fine = some_levels()
    located = build_head()(coarse_coords, coarse, fine_coords, fine, some_text())
    num_coarse = len(coarse_coords)
    assert len(located.boxes) == 9 * num_coarse
    assert located.is_coarse.tolist() == [True] * num_coarse + [False] * 8 * num_coarse
    assert torch.equal(located.sample_of_location[:num_coarse], coarse_coords[:, 0].long())
    torch.testing.assert_close(
        located.centers_of_location[:num_coarse], (coarse_coords[:, 1:] + 0.5) * COARSE_SIZE, rtol=0, atol=1e-6
    )
    # Each child's middle is a quarter of a coarse voxel from its parent's, to all eight sides.
    for row in range(num_coarse):
        of_sample = ~located.is_coarse & (located.sample_of_location == coarse_coords[row, 0])
        away = located.centers_of_location[of_sample] - located.centers_of_location[row]
        children = away[away.abs().amax(1) < COARSE_SIZE / 2] / (COARSE_SIZE / 4)
        torch.testing.assert_close(children.abs(), torch.ones(8, 3), rtol=0, atol=1e-4)
        assert len(torch.unique(children.round(), dim=0)) == 8


def test_it_begins_with_furniture_that_it_hardly_believes_in():
    head = build_head()
    located = head(*some_levels(), some_text())
    sizes = located.boxes[:, 3:6]
    assert (sizes / FIRST_SIZE).log().abs().max() < 0.3
    assert ((located.boxes[:, :3] - located.centers_of_location).abs() < COARSE_SIZE / 2).all()
    with torch.no_grad():
        head.log_logit_scale.fill_(-20)
        scores = head(*some_levels(), some_text()).class_logits.sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, FIRST_SCORE), rtol=1e-4, atol=0)


def test_classes_are_as_many_as_the_words_and_in_their_order():
    head = build_head().eval()
    located = head(*some_levels(), some_text(5))
    order = torch.tensor([3, 0, 4])
    asked_less = head(*some_levels(), some_text(5)[order])
    torch.testing.assert_close(asked_less.class_logits, located.class_logits[:, order])
    assert torch.equal(asked_less.boxes, located.boxes)


def test_what_is_seen_of_the_fine_level_reaches_the_fine_locations_alone():
    head = build_head(norm=RowLayerNorm)
    coarse_coords, coarse, fine_coords, fine = some_levels()
    before = head(coarse_coords, coarse, fine_coords, fine, some_text())
    changed = fine.clone()
    changed[7] += 1
    after = head(coarse_coords, coarse, fine_coords, changed, some_text())
    moved = (after.class_logits != before.class_logits).any(1)
    middle = (fine_coords[7, 1:] + 0.5) * COARSE_SIZE / 2
    away = (after.centers_of_location - middle).abs().amax(1) / (COARSE_SIZE / 2)
    reached = ~after.is_coarse & (after.sample_of_location == fine_coords[7, 0]) & (away < 1.1)
    assert torch.equal(moved, reached)


@pytest.mark.parametrize("norm", [RowBatchNorm, RowLayerNorm])
def test_every_weight_has_a_gradient_without_a_voxel(norm):
    head = build_head(norm)
    coords = torch.zeros(0, 4, dtype=torch.int32)
    located = head(coords, torch.zeros(0, 16), coords, torch.zeros(0, 12), some_text())
    nothing = torch.zeros(0).long()
    sum(detection_loss(*located[3:], nothing, torch.zeros(0, 7), nothing)).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in head.parameters())
    assert [len(found) for found in propose(located, 0)] == [0, 0, 0]


def test_a_fine_voxel_outside_the_coarse_level_is_refused():
    coarse_coords, coarse, fine_coords, fine = some_levels()
    moved = fine_coords + torch.tensor([0, 0, 0, 40], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"the fine voxel \[0, .*\] \(batch, x, y, z\) lies in no voxel of the coarse"):
        build_head()(coarse_coords, coarse, moved, fine, some_text())


def test_proposals_are_the_best_locations_of_one_sample_above_a_score():
    scores = torch.tensor([[0.9, 0.8], [0.2, 0.005], [0.99, 0.01], [0.3, 0.7], [0.001, 0.002]])
    boxes = torch.arange(35.0).reshape(5, 7)
    located = LocatedBoxes(
        torch.zeros(5, 3), torch.tensor([0, 0, 1, 0, 0]), torch.zeros(5).bool(), scores.logit(), boxes
    )
    found, class_ids, found_scores = propose(located, 0)
    assert found[:, 0].tolist() == [0, 0, 21, 21, 7]
    assert class_ids.tolist() == [0, 1, 0, 1, 0]
    torch.testing.assert_close(found_scores, torch.tensor([0.9, 0.8, 0.3, 0.7, 0.2]))
    assert propose(located, 0, max_locations=1)[0][:, 0].tolist() == [0, 0]
    assert propose(located, 0, score_threshold=0.75)[1].tolist() == [0, 1]
    assert [len(part) for part in propose(located, 2)] == [0, 0, 0]
