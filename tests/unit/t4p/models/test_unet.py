"""The sparse U-Net: shapes, backends, invariances and the cut at the bottleneck."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from t4p.config.plans import PLANS, UNetPlan
from t4p.models.sparse import minkowski
from t4p.models.sparse.layers import Downsample, SubmanifoldConv, Upsample
from t4p.models.sparse.pyramid import build_pyramid
from t4p.models.unet import SparseUNet

SMALL = UNetPlan(8, 3, (8, 16), (1, 1), (12, 8), (1, 1))


def has_minkowski() -> bool:
    try:
        minkowski.load_minkowski_engine()
    except ImportError:
        return False
    return True


def surface_coords(num_frames: int = 2, extent: int = 24) -> torch.Tensor:
    """Canonical voxels of a floor, a slanted wall and a sphere per frame: surfaces, as depth maps are."""
    side = torch.arange(-extent // 2, extent // 2)
    u, v = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="ij"))
    xyz = torch.stack(torch.meshgrid(side, side, side, indexing="ij"), dim=-1).reshape(-1, 3)
    radius = xyz.double().norm(dim=1)
    frames = []
    for batch in range(num_frames):
        floor = torch.stack([u, v, torch.full_like(u, -extent // 2)], dim=1)
        wall = torch.stack([u, (u + batch) // 2, v], dim=1)
        sphere = xyz[(radius >= 7 + batch) & (radius < 8 + batch)]
        points = torch.cat([floor, wall, sphere])
        frames.append(torch.cat([torch.full((len(points), 1), batch), points], dim=1))
    return torch.unique(torch.cat(frames).int(), dim=0)


def build_network(plan=SMALL, in_channels=3, dtype=torch.float32, **options) -> SparseUNet:
    torch.manual_seed(0)
    return SparseUNet(in_channels, plan, **options).to(dtype)


def random_features(coords, num_channels=3, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(len(coords), num_channels, generator=torch.Generator().manual_seed(1)).to(dtype)


def test_levels_have_the_planned_widths_and_the_pyramids_rows():
    coords = surface_coords()
    network = build_network()
    pyramid = build_pyramid("native", coords, network.num_levels)
    level_features = network.encode(pyramid, random_features(coords))
    assert [f.shape for f in level_features] == [
        (len(pyramid.coords(level)), channels) for level, channels in enumerate((8, 8, 16))
    ]
    assert network.bottleneck_channels == 16
    output = network.decode(pyramid, level_features)
    assert output.shape == (len(coords), 8)
    assert network.out_channels == 8
    assert torch.equal(output, network(pyramid, random_features(coords)))
    assert network.decode_once(pyramid, level_features[2], level_features[1]).shape == (len(pyramid.coords(1)), 12)


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_plan_has_the_parameters_its_table_implies(name):
    plan = PLANS[name]
    network = SparseUNet(3, plan)

    def block(channels_in, channels_out):
        convs = 27 * channels_out * (channels_in + channels_out) + 4 * channels_out
        return convs + (channels_in * channels_out + 2 * channels_out if channels_in != channels_out else 0)

    def stage(channels_in, channels_out, num_blocks):
        return block(channels_in, channels_out) + (num_blocks - 1) * block(channels_out, channels_out)

    below = (32, 32, 64, 128)
    count = 125 * 3 * 32 + 64
    for channels_in, channels_out, num_blocks in zip(below, plan.encoder_channels, plan.encoder_blocks, strict=True):
        count += 8 * channels_in**2 + 2 * channels_in + stage(channels_in, channels_out, num_blocks)
    above = (256, *plan.decoder_channels[:-1])
    for channels_in, skip, channels_out, num_blocks in zip(
        above, (128, 64, 32, 32), plan.decoder_channels, plan.decoder_blocks, strict=True
    ):
        count += 8 * channels_in * channels_out + 2 * channels_out
        count += stage(channels_out + skip, channels_out, num_blocks)
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.num_levels == 5


@pytest.mark.parametrize(("stem_kernel_size", "num_parameters"), [(5, 37_856_052), (3, 37_846_644)])
def test_res16unet34c_has_the_size_of_the_published_network(stem_kernel_size, num_parameters):
    """With ScanNet's head of 20 classes, a linear layer here and a convolution of kernel 1 there."""
    with torch.device("meta"):
        network = SparseUNet(3, replace(PLANS["Res16UNet34C"], stem_kernel_size=stem_kernel_size))
        head = torch.nn.Linear(network.out_channels, 20)
    assert sum(p.numel() for part in (network, head) for p in part.parameters()) == num_parameters


def test_truncated_keeps_the_finest_strides():
    plan = PLANS["Res16UNet34C"].truncated(2)
    assert plan == UNetPlan(32, 5, (32, 64), (2, 3), (96, 96), (2, 2))
    assert PLANS["Res16UNet34C"].truncated(4) == PLANS["Res16UNet34C"]
    for num_strides in (0, 5):
        with pytest.raises(ValueError, match=rf"num_strides is {num_strides}; this plan can be cut to 1 \.\. 4"):
            PLANS["Res16UNet34C"].truncated(num_strides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 3, (8, 16), (1,), (8, 8), (1, 1)), r"\[2, 1, 2, 2\] entries"),
        ((8, 3, (), (), (), ()), r"\[0, 0, 0, 0\] entries"),
        ((8, 3, (8,), (0,), (8,), (1,)), "at least 1"),
        ((8, 4, (8,), (1,), (8,), (1,)), "stem_kernel_size is 4"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNetPlan(*arguments)


def test_a_pyramid_of_other_depth_is_refused():
    coords = surface_coords(1)
    with pytest.raises(ValueError, match="the pyramid has 2 levels but the network 3"):
        build_network()(build_pyramid("native", coords, 2), random_features(coords))


@pytest.mark.skipif(not has_minkowski(), reason="MinkowskiEngine is not installed")
@pytest.mark.parametrize("training", [True, False])
def test_both_backends_compute_the_same_network(training):
    """Same weights. Forward to float32 rounding; gradients to float32 rounding plus a few ReLU flips.

    A pre-activation within rounding of 0 falls on different sides in the two backends, which switches a whole row's
    gradient on or off: element by element nothing can be demanded of float32. So the reference is the native network
    in float64, and minkowski's gradients may be as far from it as flips allow (1 % of the norm), all parameters
    together and each of them in direction.
    """
    coords = surface_coords()
    plan = UNetPlan(16, 5, (16, 32, 96), (1, 2, 1), (96, 32, 16), (1, 1, 1))
    outputs, gradients = {}, {}
    for name, backend, dtype in (
        ("reference", "native", torch.float64),
        ("native", "native", torch.float32),
        ("minkowski", "minkowski", torch.float32),
    ):
        network = build_network(plan, dtype=dtype).train(training)
        output = network(build_pyramid(backend, coords, network.num_levels), random_features(coords, dtype=dtype))
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        (output * target.to(dtype)).mean().backward()
        outputs[name] = output.detach().double()
        gradients[name] = {key: p.grad.double() for key, p in network.named_parameters()}
    for name in ("native", "minkowski"):
        error = (outputs[name] - outputs["reference"]).abs().max() / outputs["reference"].abs().max()
        assert error < 1e-5
        differences = [gradients[name][key] - gradient for key, gradient in gradients["reference"].items()]
        size = math.sqrt(sum(float(g.square().sum()) for g in gradients["reference"].values()))
        assert math.sqrt(sum(float(d.square().sum()) for d in differences)) < 1e-2 * size
        for key, gradient in gradients["reference"].items():
            cosine = torch.cosine_similarity(gradients[name][key].flatten(), gradient.flatten(), dim=0)
            assert float(cosine) > 0.999, f"{name} {key}"


def test_gradients_equal_finite_differences_in_float64():
    coords = surface_coords(1, extent=8)
    network = build_network(dtype=torch.float64)
    pyramid = build_pyramid("native", coords, network.num_levels)
    features = random_features(coords, dtype=torch.float64)
    network(pyramid, features).square().sum().backward()
    generator = torch.Generator().manual_seed(3)
    step = 1e-6
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            expected = float((parameter.grad * direction).sum())
            losses = []
            for sign in (1, -1):
                parameter.add_(sign * step * direction)
                losses.append(float(network(pyramid, features).square().sum()))
                parameter.sub_(sign * step * direction)
            found = (losses[0] - losses[1]) / (2 * step)
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-4 * abs(losses[0])), name


def test_bf16_autocast_stays_near_float32_and_gradients_reach_float32_parameters():
    coords = surface_coords()
    network = build_network()
    pyramid = build_pyramid("native", coords, network.num_levels)
    expected = network(pyramid, random_features(coords))
    with torch.autocast("cpu", torch.bfloat16):
        found = network(pyramid, random_features(coords))
    assert found.dtype == torch.float32  # the last block ends in a norm
    assert float(((found - expected).norm() / expected.norm()).detach()) < 3e-2
    found.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_moving_the_scene_by_whole_bottleneck_cells_changes_nothing():
    coords = surface_coords()
    network = build_network()
    moved = coords.clone()
    moved[:, 1:] += torch.tensor([4, -8, 12], dtype=torch.int32)  # 2 strides: cells of 4
    first, second = (
        network(build_pyramid("native", c, network.num_levels), random_features(coords)) for c in (coords, moved)
    )
    assert torch.equal(first, second)


def test_frames_of_a_batch_do_not_see_each_other_in_eval():
    coords = surface_coords(2)
    network = build_network(dtype=torch.float64).eval()
    features = random_features(coords, dtype=torch.float64)
    together = network(build_pyramid("native", coords, network.num_levels), features)
    second = coords[:, 0] == 1
    alone = coords[second].clone()
    alone[:, 0] = 0
    output = network(build_pyramid("native", alone, network.num_levels), features[second])
    torch.testing.assert_close(together[second], output, rtol=1e-12, atol=1e-12)


def test_the_step_is_bitwise_repeatable():
    coords = surface_coords()
    runs = []
    for _ in range(2):
        network = build_network(UNetPlan(16, 5, (16, 96), (1, 1), (96, 16), (1, 1)))
        output = network(build_pyramid("native", coords, network.num_levels), random_features(coords))
        output.square().mean().backward()
        runs.append([output.detach(), *(p.grad for p in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_bottleneck_can_be_replaced_between_encode_and_decode():
    coords = surface_coords()
    network = build_network()
    pyramid = build_pyramid("native", coords, network.num_levels)
    *finer, bottleneck = network.encode(pyramid, random_features(coords))
    plain = network.decode(pyramid, (*finer, bottleneck))
    changed = network.decode(pyramid, (*finer, bottleneck + 1.0))
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize("num_voxels", [0, 1, 2])
def test_training_survives_almost_empty_batches_and_every_parameter_gets_a_gradient(num_voxels):
    coords = torch.tensor([[0, 0, 0, 0], [1, 5, 5, 5]], dtype=torch.int32)[:num_voxels]
    network = build_network().train()
    output = network(build_pyramid("native", coords, network.num_levels), torch.ones(num_voxels, 3))
    output.sum().backward()
    assert output.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_initial_weights_keep_the_second_moment_on_surfaces():
    """He: unit second moment in, 2 out before the ReLU halves it; borders of these small scenes lose some."""
    torch.manual_seed(0)
    coords = surface_coords()
    pyramid = build_pyramid("native", coords, 2)
    fine, coarse = (torch.randn(len(pyramid.coords(level)), 64) for level in (0, 1))
    for output in (
        SubmanifoldConv(64, 64, 3)(pyramid, fine, 0),
        SubmanifoldConv(64, 64, 5)(pyramid, fine, 0),
        Downsample(64, 64)(pyramid, fine, 0),
        Upsample(64, 64)(pyramid, coarse, 1),
        SubmanifoldConv(64, 64, 1)(pyramid, fine, 0),
    ):
        assert 1.3 < float(output.detach().square().mean()) < 2.8


BACKENDS = [
    "native",
    pytest.param("minkowski", marks=pytest.mark.skipif(not has_minkowski(), reason="MinkowskiEngine is not installed")),
]


@pytest.fixture
def one_thread():
    """MinkowskiEngine's weight gradients differ in the last bits from one run to the next with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def step_of(network, backend, coords, precision="fp32") -> list[torch.Tensor]:
    """Loss, gradients and buffers of two training steps, the second in a graph that is used twice."""
    results = []
    for num_backwards in (1, 2):
        with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
            output = network(build_pyramid(backend, coords, network.num_levels), random_features(coords))
            loss = output.square().sum()
        for index in range(num_backwards):
            loss.backward(retain_graph=index + 1 < num_backwards)
        results += [loss.detach(), *(p.grad.clone() for p in network.parameters())]
        results += [buffer.clone() for buffer in network.buffers()]
    return results


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_voxels", [None, 0, 1])
def test_activation_checkpointing_changes_no_bit_and_moves_running_statistics_once(
    backend, precision, num_voxels, one_thread
):
    coords = surface_coords(1, extent=10)[:num_voxels]
    plain, checkpointed = (
        step_of(build_network(activation_checkpointing=value), backend, coords, precision) for value in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, checkpointed, strict=True))


def saved_bytes(network, backend, coords, features) -> int:
    """What autograd keeps for the backward pass, parameters and input aside, every storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers(), features)}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that its address is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(build_pyramid(backend, coords, network.num_levels), features)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_activation_checkpointing_keeps_little_more_than_what_goes_into_the_stages(backend):
    coords = surface_coords()
    features = random_features(coords)
    plan = UNetPlan(8, 3, (8, 16), (2, 3), (16, 8), (2, 2))
    plain = saved_bytes(build_network(plan), backend, coords, features)
    checkpointed = saved_bytes(build_network(plan, activation_checkpointing=True), backend, coords, features)
    pyramid = build_pyramid(backend, coords, 3)
    # Into the encoder stages go levels 0 and 1; into the decoder stages 2 and 1, then the first decoder's output and 0.
    channels_of_level = [(0, 8), (1, 8), (2, 16), (1, 16)]
    wanted = sum(4 * channels * len(pyramid.coords(level)) for level, channels in channels_of_level)
    assert wanted <= checkpointed <= 1.02 * wanted
    assert checkpointed < plain / 8


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_convolution_saves_its_input_where_activation_checkpointing_can_drop_it(backend):
    pyramid = build_pyramid(backend, surface_coords(1, extent=8), 2)
    features = torch.randn(len(pyramid.coords(0)), 4, requires_grad=True)
    seen = []

    def pack(tensor):
        seen.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        SubmanifoldConv(4, 4, 3)(pyramid, features, 0)
    assert features.data_ptr() in seen


def test_activation_checkpointing_runs_every_stage_once_without_gradients(monkeypatch):
    network = build_network(activation_checkpointing=True)
    monkeypatch.setattr("t4p.models.unet.checkpoint", None)  # calling it would fail
    coords = surface_coords(1)
    with torch.no_grad():
        network(build_pyramid("native", coords, network.num_levels), random_features(coords))
