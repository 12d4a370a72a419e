import pytest
import torch
from torch.nn import functional as F

from t4p.losses.instance import InstanceWeights, by_layer, decode_masks, instance_loss
from t4p.models.query_decoder import QueryDecoder, pool_groups

SAMPLE_OF_GROUP = torch.tensor([0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 3])  # sample 1 has no group


def build(num_layers=2, seed=0, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"in_channels": 6, "dim": 16, "num_queries": 5, "num_heads": 4, "clip_dim": 12, "logit_scale": 10.0}
        return QueryDecoder(num_layers=num_layers, **sizes | settings)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text_of(num_labels, seed=2):
    return F.normalize(draw(num_labels, 12, seed=seed), dim=1)


def ask(decoder, *arguments):
    """What every layer says."""
    return by_layer(decoder(*arguments))


def test_a_group_is_the_mean_of_its_voxels():
    features = draw(7, 3).requires_grad_()
    group_of_voxel = torch.tensor([2, 0, 2, 2, 0, 4, 4])
    pooled = pool_groups(features, group_of_voxel, 5)
    wanted = [features[group_of_voxel == group].mean(0) for group in (0, 2, 4)]
    torch.testing.assert_close(pooled[[0, 2, 4]], torch.stack(wanted))
    assert not pooled[[1, 3]].any()
    (gradient,) = torch.autograd.grad(pooled[:, 0].sum(), features)
    assert gradient[:, 0].tolist() == pytest.approx([1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2, 1 / 2, 1 / 2])
    assert pool_groups(features[:0].bfloat16(), group_of_voxel[:0], 0).dtype == torch.float32


def test_every_sample_is_answered_as_if_it_were_alone():
    decoder = build().double()
    features, text = draw(11, 6), text_of(4)
    together = ask(decoder, features, SAMPLE_OF_GROUP, 5, text)
    assert len(together) == 3
    for sample in range(5):
        groups = sample == SAMPLE_OF_GROUP
        alone = ask(decoder, features[groups], SAMPLE_OF_GROUP[groups] * 0, 1, text)
        for found, wanted in zip(together, alone, strict=True):
            torch.testing.assert_close(found.class_logits[sample], wanted.class_logits[0])
            torch.testing.assert_close(found.mask_logits[:, groups], wanted.mask_logits)
            torch.testing.assert_close(found.scores[sample], wanted.scores[0])


def test_labels_may_change_in_number_and_order():
    decoder, features = build().double(), draw(11, 6)
    result = ask(decoder, features, SAMPLE_OF_GROUP, 4, text_of(3))[-1]
    assert result.class_logits.shape == (4, 5, 4)
    turned = ask(decoder, features, SAMPLE_OF_GROUP, 4, text_of(3).flip(0))[-1]
    torch.testing.assert_close(turned.class_logits[..., :3].flip(-1), result.class_logits[..., :3])
    torch.testing.assert_close(turned.mask_logits, result.mask_logits)
    assert ask(decoder, features, SAMPLE_OF_GROUP, 4, text_of(9))[-1].class_logits.shape == (4, 5, 10)


def test_a_query_looks_at_the_groups_of_its_mask_only_and_at_all_where_it_has_none():
    decoder, text = build(num_layers=1).double(), text_of(4)
    torch.nn.init.zeros_(decoder.layers[0].talk.to_output.weight)  # or queries would hear of it from others
    features, changed = draw(9, 6), draw(9, 6)
    changed[4] += 0.1
    sample_of_group = torch.zeros(9, dtype=torch.int64)

    def both():
        return [ask(decoder, values, sample_of_group, 1, text) for values in (features, changed)]

    (first, before), (first_changed, after) = both()
    masks = first.mask_logits > 0
    assert torch.equal(masks, first_changed.mask_logits > 0)
    differs = (before.class_logits != after.class_logits).any(-1)[0]
    assert torch.equal(differs, masks[:, 4] | ~masks.any(1))
    assert differs.any()
    assert not differs.all()

    for parameter in decoder.mask_features[-1].parameters():
        torch.nn.init.zeros_(parameter)  # every mask is empty
    (_, before), (_, after) = both()
    assert (before.class_logits != after.class_logits).any(-1).all()


@pytest.mark.parametrize(("num_groups", "num_samples"), [(0, 0), (0, 2), (11, 4)])
def test_every_parameter_has_a_gradient_whatever_there_is(num_groups, num_samples):
    decoder = build()
    predictions = ask(decoder, draw(num_groups, 6).float(), SAMPLE_OF_GROUP[:num_groups], num_samples, text_of(4))
    sum(tensor.sum() for layer in predictions for tensor in layer).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # The key's bias moves all logits of a query alike, and a softmax does not see it.
        assert num_groups == 0 or parameter.grad.any() or name.endswith("to_key.bias"), name


def test_predictions_are_float32_under_autocast_and_cosines_exact():
    decoder, text = build(num_layers=0), text_of(4).float()
    with torch.autocast("cpu", torch.bfloat16):
        (low,) = ask(decoder, draw(11, 6).float(), SAMPLE_OF_GROUP, 4, text)
    assert {tensor.dtype for tensor in low} == {torch.float32}
    named = F.normalize(decoder.to_text(decoder.query_norm(decoder.queries)), dim=1)
    torch.testing.assert_close(low.class_logits[2, :, :4], 10 * named @ text.T)
    assert not low.class_logits[..., 4].any()


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="dim 16 is not a multiple of num_heads 3"):
        build(num_heads=3)
    with pytest.raises(ValueError, match="num_queries is 0"):
        build(num_queries=0)


def test_two_samples_are_learnt_by_heart():
    generator = torch.Generator().manual_seed(0)
    sample_of_group = torch.arange(2).repeat_interleave(30)
    instance_of_group = torch.full((60,), -1)
    for instance, start in enumerate((0, 10, 30, 45)):
        instance_of_group[start : start + 5 + instance] = instance
    features = torch.randn(5, 6, generator=generator)[instance_of_group]
    features += 0.2 * torch.randn(60, 6, generator=generator)
    label_of_instance, sample_of_instance = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 1, 1])
    text = text_of(3).float()

    decoder = build(dim=32, num_queries=8, num_layers=1)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(60):
        predictions = ask(decoder, features, sample_of_group, 2, text)
        truth = (instance_of_group, label_of_instance, sample_of_instance, sample_of_group)
        loss, *_ = instance_loss(predictions, *truth, InstanceWeights())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = ask(decoder, features, sample_of_group, 2, text)[-1]
    for sample in range(2):
        masks, class_ids, scores = decode_masks(result, sample, sample_of_group)
        of_sample = instance_of_group[sample_of_group == sample]
        wanted = {(int(label_of_instance[m]), tuple((of_sample == m).tolist())) for m in (2 * sample, 2 * sample + 1)}
        found = [(label, tuple(mask)) for label, mask in zip(class_ids.tolist(), masks.tolist(), strict=True)]
        assert set(found[:2]) == wanted
        assert scores[1] > 0.8 > 0.4 > scores[2]
