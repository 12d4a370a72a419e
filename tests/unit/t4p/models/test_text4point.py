"""The whole 3D network: shapes, the aggregation, and what it must not depend on."""

import sys

import pytest
import torch

from t4p.config.files import load_config
from t4p.config.network import UNetConfig
from t4p.config.plans import build_plan
from t4p.errors import ConfigError
from t4p.models.sparse.minkowski import load_minkowski_engine
from t4p.models.sparse.pyramid import build_pyramid
from t4p.models.text4point import build_text4point

CLIP_DIM = 16


def build(sparse_backend="auto", activation_checkpointing=False, **text_query):
    overrides = [f"model.text_query.{key}={value}" for key, value in text_query.items()]
    overrides.append(f"model.sparse_backend={sparse_backend}")
    overrides.append(f"model.unet.activation_checkpointing={activation_checkpointing}")
    config = load_config(
        ["configs/smoke.yaml"],
        [
            "data.shards=[a]",
            "model.unet.encoder_channels=[8, 12]",
            "model.unet.decoder_channels=[12, 8]",
            "model.unet.stem_channels=8",
            "model.embed_dim_d=6",
            *overrides,
        ],
    )
    torch.manual_seed(0)
    return build_text4point(config.model, CLIP_DIM, config.model.embed_dim_d)


def scene(seed=0, num_scenes=2, extent=12, count=150):
    generator = torch.Generator().manual_seed(seed)
    coords = torch.randint(0, extent, (count, 3), generator=generator, dtype=torch.int32)
    scenes = torch.randint(0, num_scenes, (count, 1), generator=generator, dtype=torch.int32)
    coords = torch.unique(torch.cat([scenes, coords], dim=1), dim=0)
    return coords, torch.randn(len(coords), 3, generator=generator)


def text(num_labels, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(num_labels, CLIP_DIM, generator=generator), dim=1)


def test_both_levels_have_the_rows_and_widths_of_the_method():
    net = build()
    coords, features = scene()
    aligned, decoded = net(coords, features, text(5))
    bottleneck = torch.unique(torch.cat([coords[:, :1], coords[:, 1:] >> 2], dim=1), dim=0)
    assert aligned.shape == (len(bottleneck), CLIP_DIM)
    assert decoded.shape == (len(coords), 6)


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize(
    "parts", [(), ("encoder",), ("decoder",), ("encoder", "decoder"), ("encoder", "text_query", "decoder")]
)
def test_frozen_parts_keep_weights_and_norms_and_the_others_train(parts, activation_checkpointing):
    names = {
        "encoder": ("unet.stem.", "unet.stem_norm.", "unet.encoder.", "expand."),
        "text_query": ("text_query.", "reduce."),
        "decoder": ("unet.decoder.",),
    }
    frozen = tuple(name for part in parts for name in names[part])
    net = build(activation_checkpointing=activation_checkpointing)
    net.freeze(parts)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expanded, decoded = net(*scene(), text(5))
    (expanded.square().sum() + decoded.square().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert not name.startswith(frozen), name
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert not {name for name in moved if name.startswith(frozen)}
    statistics = {name for name in before if name.endswith("running_mean")}
    assert statistics - moved == {name for name in statistics if name.startswith(frozen)}


@pytest.mark.parametrize("training", [True, False])
def test_beta_zero_is_the_plain_unet_bit_for_bit(training):
    net = build(beta=0.0).train(training)
    coords, features = scene()
    _, decoded = net(coords, features, text(5))
    plain = build(beta=0.0).train(training)
    pyramid = build_pyramid("native", coords, plain.unet.num_levels)
    expected = plain.head(plain.unet(pyramid, features))
    assert torch.equal(decoded.view(torch.int32), expected.view(torch.int32))
    decoded.square().sum().backward()
    expected.square().sum().backward()
    for (name, parameter), other in zip(net.unet.named_parameters(), plain.unet.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=0, msg=name)


def test_with_beta_the_text_reaches_the_decoder_but_not_the_aligned_features():
    net = build(beta=1.0).eval()
    coords, features = scene()
    aligned_a, decoded_a = net(coords, features, text(5, seed=1))
    aligned_b, decoded_b = net(coords, features, text(5, seed=2))
    assert torch.equal(aligned_a, aligned_b)
    assert (decoded_a - decoded_b).abs().max() > 1e-3


def test_activation_checkpointing_is_passed_on_and_changes_no_gradient():
    coords, features = scene()
    plain, checkpointed = build(), build(activation_checkpointing=True)
    assert checkpointed.unet.activation_checkpointing
    for net in (plain, checkpointed):
        aligned, decoded = net(coords, features, text(5))
        (aligned.square().mean() + decoded.square().mean()).backward()
    for (name, parameter), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_alpha_scales_what_the_encoder_contributes():
    coords, features = scene()
    one, two = build(alpha=1.0).eval(), build(alpha=2.0).eval()
    assert not torch.equal(one(coords, features, text(5))[1], two(coords, features, text(5))[1])


def test_weights_load_strictly_for_another_label_list():
    coords, features = scene()
    net, other = build(), build()
    other.load_state_dict(net.state_dict(), strict=True)
    for num_labels in (1, 5, 200):
        assert other(coords, features, text(num_labels))[1].shape[0] == len(coords)


def test_scenes_of_a_batch_do_not_see_each_other():
    net = build().eval()
    coords, features = scene(num_scenes=2)
    together = net(coords, features, text(5))[1]
    for index in range(2):
        mine = coords[:, 0] == index
        alone = coords[mine].clone()
        alone[:, 0] = 0
        torch.testing.assert_close(net(alone, features[mine], text(5))[1], together[mine], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse_backend", ["native", "minkowski"])
def test_a_rank_without_voxels_takes_part_with_every_weight(sparse_backend):
    if sparse_backend == "minkowski":
        pytest.importorskip("MinkowskiEngineBackend", reason="MinkowskiEngine is not installed")
    net = build(sparse_backend)
    no_voxels = torch.empty(0, 4, dtype=torch.int32)
    aligned, decoded = net(no_voxels, torch.empty(0, 3), text(5))
    assert (aligned.shape, decoded.shape) == ((0, CLIP_DIM), (0, 6))
    (aligned.sum() + decoded.sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize(
    ("text_query", "message"),
    [
        ({"num_heads": 3}, "model.text_query.num_heads: 3 does not divide 16"),
        ({"mlp_ratio": 0.01}, "model.text_query.mlp_ratio: 0.01 leaves .* choose at least 0.0625"),
    ],
)
def test_a_text_query_that_does_not_fit_clip_is_refused_by_its_key(text_query, message):
    model = load_config(["configs/smoke.yaml"], ["data.shards=[a]"]).model
    changed = {"text_query": model.text_query.model_copy(update=text_query)}
    with pytest.raises(ConfigError, match=message):
        build_text4point(model.model_copy(update=changed), 16, 4)


@pytest.mark.parametrize("world_size", [1, 4])
def test_a_norm_group_that_does_not_divide_the_world_is_refused_by_its_key(monkeypatch, world_size):
    model = load_config(["configs/smoke.yaml"], ["data.shards=[a]", "model.norm_group_size=3"]).model
    monkeypatch.setattr("t4p.models.norm.world_size", lambda: world_size)
    with pytest.raises(
        ConfigError, match=rf"model\.norm_group_size is 3, which does not divide the world size, {world_size}"
    ):
        build_text4point(model, CLIP_DIM, model.embed_dim_d)


def test_a_backend_that_is_not_installed_is_refused_when_the_network_is_built(monkeypatch):
    load_minkowski_engine.cache_clear()
    monkeypatch.setitem(sys.modules, "MinkowskiEngine", None)  # then `import MinkowskiEngine` is an ImportError
    with pytest.raises(ConfigError, match=r"model\.sparse_backend is 'minkowski': (.|\n)*`make env`"):
        build("minkowski")


def test_a_plan_takes_what_the_configuration_sets():
    plan = build_plan(UNetConfig(plan="Res16UNet14A", num_strides=2, stem_channels=16))
    assert (plan.num_strides, plan.stem_channels, plan.encoder_channels) == (2, 16, (32, 64))


@pytest.mark.parametrize(
    ("unet", "message"),
    [
        ({"plan": "MinkUNet99"}, "plan is 'MinkUNet99'; known: Res16UNet14A"),
        ({"num_strides": 5}, "num_strides is 5"),
        ({"num_strides": 2, "encoder_channels": (8,)}, r"\[1, 2, 2, 2\] entries"),
    ],
)
def test_a_plan_that_does_not_exist_or_fit_is_refused(unet, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**unet)
