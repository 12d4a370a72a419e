"""Every sparse layer against dense convolution in float64 and MinkowskiEngine in float32."""

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from t4p.models.sparse import minkowski, native_functions
from t4p.models.sparse.layers import GenerativeUpsample
from t4p.models.sparse.pyramid import build_pyramid

REAL_FRAMES = Path(__file__).parents[5] / "shared/data/seven_scenes_style/data"
# (operation, kernel offsets): every layer type
LAYERS = [("conv", 1), ("conv", 27), ("conv", 125), ("downsample", 8), ("upsample", 8)]
# both computations of a submanifold convolution, forward and backward: im2col below 96 source channels, pairs above
WIDTHS = [(5, 7), (100, 6), (6, 100), (97, 98)]


def has_minkowski() -> bool:
    try:
        minkowski.load_minkowski_engine()
    except ImportError:
        return False
    return True


needs_minkowski = pytest.mark.skipif(not has_minkowski(), reason="MinkowskiEngine is not installed")


def random_coords(seed: int = 0, num_draws: int = 400, extent: int = 4) -> torch.Tensor:
    """Canonical voxels in [-extent, extent), two frames."""
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.randint(-extent, extent, (num_draws, 3), generator=generator)
    batch = torch.randint(0, 2, (num_draws, 1), generator=generator)
    return torch.unique(torch.cat([batch, xyz], dim=1).int(), dim=0)


def real_coords(voxel_size: float, frame_ids: tuple[int, ...] = (0, 500)) -> torch.Tensor:
    """Voxels of real Kinect frames, camera axes."""
    batches = []
    for batch, frame_id in enumerate(frame_ids):
        path = REAL_FRAMES / f"frame-{frame_id:06d}.depth.png"
        if not path.exists():
            pytest.skip(f"{path.name} of the shared seven-scenes frames is not here")
        depth_mm = np.asarray(Image.open(path)).astype(np.float64)
        row, col = np.nonzero((depth_mm > 0) & (depth_mm < 65535))
        z = depth_mm[row, col] / 1000
        points = np.stack([(col - 320) * z / 585, (row - 240) * z / 585, z], axis=1)
        xyz = np.unique(np.floor(points / voxel_size).astype(np.int32), axis=0)
        batches.append(np.concatenate([np.full((len(xyz), 1), batch, np.int32), xyz], axis=1))
    return torch.from_numpy(np.concatenate(batches))


def level_of(operation: str) -> int:
    return 1 if operation == "upsample" else 0


def run_layer(pyramid, operation, num_offsets, widths, *, dtype=torch.float32, level=None, seed=0):
    """Output, gradient of the features and gradient of the weight, for seeded random operands."""
    level = level_of(operation) if level is None else level
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(pyramid.coords(level)), widths[0], generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(num_offsets, *widths, generator=generator, dtype=dtype).requires_grad_()
    output = getattr(pyramid, operation)(features, weight, level)
    grad_output = torch.randn(output.shape, generator=generator, dtype=dtype)
    output.backward(grad_output.to(output.dtype))
    return output.detach(), features.grad, weight.grad


def scatter_dense(features, coords, extent):
    """(V, C) at coords in [-extent, extent) to (2, C, X, Y, Z)."""
    batch, x, y, z = coords.long().unbind(1)
    dense = features.new_zeros(2, 2 * extent, 2 * extent, 2 * extent, features.shape[1])
    dense = dense.index_put((batch, x + extent, y + extent, z + extent), features)
    return dense.permute(0, 4, 1, 2, 3)


def gather_dense(dense, coords, extent):
    batch, x, y, z = coords.long().unbind(1)
    return dense.permute(0, 2, 3, 4, 1)[batch, x + extent, y + extent, z + extent]


def run_dense_layer(pyramid, operation, num_offsets, widths, extent):
    """The same as run_layer in float64 through torch's own dense convolutions."""
    level = level_of(operation)
    target_level = {"conv": level, "downsample": level + 1, "upsample": level - 1}[operation]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(
        len(pyramid.coords(level)), widths[0], generator=generator, dtype=torch.float64
    ).requires_grad_()
    weight = torch.randn(num_offsets, *widths, generator=generator, dtype=torch.float64).requires_grad_()
    kernel_size = round(num_offsets ** (1 / 3))
    kernel = weight.view(kernel_size, kernel_size, kernel_size, *widths)  # dz, dy, dx, Cin, Cout
    dense = scatter_dense(features, pyramid.coords(level), extent >> level)
    if operation == "conv":
        result = F.conv3d(dense, kernel.permute(4, 3, 2, 1, 0), padding=kernel_size // 2)
    elif operation == "downsample":
        result = F.conv3d(dense, kernel.permute(4, 3, 2, 1, 0), stride=2)
    else:
        result = F.conv_transpose3d(dense, kernel.permute(3, 4, 2, 1, 0), stride=2)
    output = gather_dense(result, pyramid.coords(target_level), extent >> target_level)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64))
    return output.detach(), features.grad, weight.grad


def assert_close(found, expected, tolerance):
    for name, a, b in zip(("output", "features.grad", "weight.grad"), found, expected, strict=True):
        assert a.shape == b.shape
        error = float((a.double() - b.double()).abs().max() / b.double().abs().max())
        assert error <= tolerance, f"{name} differs by {error:.1e} of its largest value"


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize(("operation", "num_offsets"), LAYERS)
def test_native_equals_dense_convolution_in_float64(operation, num_offsets, widths):
    pyramid = build_pyramid("native", random_coords(), 2)
    found = run_layer(pyramid, operation, num_offsets, widths, dtype=torch.float64)
    assert_close(found, run_dense_layer(pyramid, operation, num_offsets, widths, 4), 1e-13)


def test_native_gradients_pass_gradcheck():
    pyramid = build_pyramid("native", random_coords(num_draws=20, extent=2), 2)
    for operation, num_offsets in LAYERS:
        level = level_of(operation)
        features = torch.randn(len(pyramid.coords(level)), 2, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(num_offsets, 2, 3, dtype=torch.float64, requires_grad=True)
        apply = getattr(pyramid, operation)
        assert torch.autograd.gradcheck(lambda f, w, apply=apply, level=level: apply(f, w, level), (features, weight))


@needs_minkowski
@pytest.mark.parametrize("widths", [(5, 7), (100, 98)], ids=str)
@pytest.mark.parametrize(("operation", "num_offsets"), LAYERS)
def test_native_equals_minkowski_on_random_voxels(operation, num_offsets, widths):
    coords = random_coords(seed=1, num_draws=1500, extent=8)
    native, engine = (build_pyramid(backend, coords, 4) for backend in ("native", "minkowski"))
    for level in range(4):
        if (operation == "downsample" and level == 3) or (operation == "upsample" and level == 0):
            continue
        assert torch.equal(native.coords(level), engine.coords(level))
        found = run_layer(native, operation, num_offsets, widths, level=level)
        assert_close(found, run_layer(engine, operation, num_offsets, widths, level=level), 1e-5)


@needs_minkowski
@pytest.mark.parametrize("voxel_size", [0.025, 0.05])
def test_native_equals_minkowski_on_real_voxels(voxel_size):
    coords = real_coords(voxel_size, frame_ids=(0,) if voxel_size < 0.05 else (0, 500))
    assert len(coords) > 3000
    native, engine = (build_pyramid(backend, coords, 2) for backend in ("native", "minkowski"))
    for operation, num_offsets in LAYERS:
        found = run_layer(native, operation, num_offsets, (4, 6))
        assert_close(found, run_layer(engine, operation, num_offsets, (4, 6)), 1e-5)
    assert_close(run_layer(native, "conv", 27, (96, 96)), run_layer(engine, "conv", 27, (96, 96)), 1e-5)


@needs_minkowski
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # ME's modules, not our backend
@pytest.mark.parametrize("source", ["random", "real"])
def test_native_equals_minkowskis_own_layers_matched_by_coordinate(source):
    """No code of the minkowski backend: ME makes its own coarse coordinates, in its own order."""
    engine = minkowski.load_minkowski_engine()
    coords = random_coords(seed=2, num_draws=2000, extent=9) if source == "random" else real_coords(0.05)
    pyramid = build_pyramid("native", coords, 2)
    torch.manual_seed(0)
    features = torch.randn(len(coords), 5)
    layers = {
        "conv": engine.MinkowskiConvolution(5, 6, kernel_size=3, dimension=3),
        "down": engine.MinkowskiConvolution(6, 7, kernel_size=2, stride=2, dimension=3),
        "coarse": engine.MinkowskiConvolution(7, 7, kernel_size=5, dimension=3),
        "up": engine.MinkowskiConvolutionTranspose(7, 4, kernel_size=2, stride=2, dimension=3),
    }
    shuffled = torch.randperm(len(coords))
    tensor = engine.SparseTensor(features[shuffled], coordinates=coords[shuffled])
    for layer in layers.values():
        tensor = layer(tensor)
    row_of = {tuple(row): index for index, row in enumerate(tensor.C.tolist())}
    expected = tensor.F.detach()[[row_of[tuple(row)] for row in coords.tolist()]]

    weights = {name: layer.kernel.detach() for name, layer in layers.items()}
    found = pyramid.conv(features, weights["conv"], 0)
    found = pyramid.conv(pyramid.downsample(found, weights["down"], 0), weights["coarse"], 1)
    found = pyramid.upsample(found, weights["up"], 1)
    assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-5


def run_generative(pyramid, layer, level, dtype=torch.float32, seed=0):
    """The pyramid of the children, and as run_layer."""
    generator = torch.Generator().manual_seed(seed)
    width = layer.weight.shape[1]
    features = torch.randn(len(pyramid.coords(level)), width, generator=generator, dtype=dtype).requires_grad_()
    layer.weight.grad = None
    children, output = layer(pyramid, features, level)
    output.backward(torch.randn(output.shape, generator=generator, dtype=dtype))
    return children, (output.detach(), features.grad, layer.weight.grad)


@pytest.mark.parametrize("widths", [(5, 7), (100, 98)], ids=str)
def test_generative_upsampling_is_the_whole_dense_transposed_convolution(widths):
    coords = random_coords()
    pyramid = build_pyramid("native", coords, 1)
    layer = GenerativeUpsample(*widths).double()
    children, found = run_generative(pyramid, layer, 0, torch.float64)
    assert torch.equal(children.coords(1), coords)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(coords), widths[0], generator=generator, dtype=torch.float64).requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    kernel = weight.view(2, 2, 2, *widths).permute(3, 4, 2, 1, 0)
    dense = F.conv_transpose3d(scatter_dense(features, coords, 4), kernel, stride=2)
    missing = scatter_dense(found[0], children.coords(0), 8) - dense.detach()
    assert float(missing.abs().max()) < 1e-12  # where there is no child it is zero
    output = gather_dense(dense, children.coords(0), 8)
    output.backward(torch.randn(output.shape, generator=generator, dtype=torch.float64))
    assert_close(found, (output.detach(), features.grad, weight.grad), 1e-13)


def test_generative_gradients_pass_gradcheck():
    pyramid = build_pyramid("native", random_coords(num_draws=8, extent=2), 2)
    layer = GenerativeUpsample(2, 3).double()
    features = torch.randn(len(pyramid.coords(1)), 2, dtype=torch.float64, requires_grad=True)

    def apply(features, weight):
        return torch.func.functional_call(layer, {"weight": weight}, (pyramid, features, 1))[1]

    assert torch.autograd.gradcheck(apply, (features, layer.weight))


@needs_minkowski
def test_generative_upsampling_is_the_same_on_both_backends():
    coords = random_coords(seed=6, num_draws=600, extent=8)
    native, engine = (build_pyramid(backend, coords, 2) for backend in ("native", "minkowski"))
    layer, next_layer = GenerativeUpsample(5, 7), GenerativeUpsample(7, 4)
    (native, found), (engine, expected) = (run_generative(pyramid, layer, 1) for pyramid in (native, engine))
    assert_close(found, expected, 1e-5)
    assert (native.backend, engine.backend) == ("native", "minkowski")
    assert torch.equal(native.coords(0), engine.coords(0))
    assert_close(run_layer(native, "conv", 27, (7, 7)), run_layer(engine, "conv", 27, (7, 7)), 1e-5)
    (native, found), (engine, expected) = (run_generative(pyramid, next_layer, 0) for pyramid in (native, engine))
    assert_close(found, expected, 1e-5)
    assert torch.equal(native.coords(0), engine.coords(0))


@needs_minkowski
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_generative_upsampling_equals_minkowskis_own_layer_matched_by_coordinate():
    engine = minkowski.load_minkowski_engine()
    coords = random_coords(seed=7, num_draws=600, extent=9)
    pyramid = build_pyramid("native", coords, 2)
    coarse = pyramid.coords(1).clone()
    coarse[:, 1:] *= 2
    torch.manual_seed(0)
    reference = engine.MinkowskiGenerativeConvolutionTranspose(5, 6, kernel_size=2, stride=2, dimension=3)
    layer = GenerativeUpsample(5, 6)
    layer.weight.data.copy_(reference.kernel)
    children, found = run_generative(pyramid, layer, 1)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(coarse), 5, generator=generator).requires_grad_()
    tensor = reference(engine.SparseTensor(features, coordinates=coarse, tensor_stride=2))
    row_of = {tuple(row): index for index, row in enumerate(tensor.C.tolist())}
    rows = [row_of.pop(tuple(row)) for row in children.coords(0).tolist()]
    assert not row_of
    output = tensor.F[rows]
    output.backward(torch.randn(output.shape, generator=generator))
    assert_close(found, (output.detach(), features.grad, reference.kernel.grad), 1e-5)


@pytest.mark.parametrize("backend", ["native", pytest.param("minkowski", marks=needs_minkowski)])
def test_generative_upsampling_takes_no_voxels_at_all(backend):
    pyramid = build_pyramid(backend, torch.empty(0, 4, dtype=torch.int32), 2)
    children, (output, grad_features, grad_weight) = run_generative(pyramid, GenerativeUpsample(5, 7), 1)
    assert children.coords(0).shape == (0, 4)
    assert (output.shape, grad_features.shape) == ((0, 7), (0, 5))
    assert not grad_weight.any()
    with pytest.raises(ValueError, match="level 2: this pyramid allows levels 0 to 1"):
        GenerativeUpsample(5, 7)(pyramid, output, 2)


@pytest.mark.parametrize("widths", [(20, 30), (100, 98)], ids=str)
@pytest.mark.parametrize(("operation", "num_offsets"), LAYERS)
def test_bf16_autocast_computes_in_bf16_and_returns_gradients_in_float32(operation, num_offsets, widths):
    coords = random_coords(seed=3, num_draws=1500, extent=8)  # more rows than one fixed-shape block
    pyramid = build_pyramid("native", coords, 2)
    assert len(coords) > native_functions.HALF_BLOCK_ROWS
    expected = run_layer(pyramid, operation, num_offsets, widths)
    with torch.autocast("cpu", torch.bfloat16):
        found = run_layer(pyramid, operation, num_offsets, widths)
    assert [tensor.dtype for tensor in found] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(found, expected, strict=True):
        assert 1e-5 < float((a.float() - b).norm() / b.norm()) < 6e-3  # 2^-8 is 4e-3: rounded once, not per offset


def test_bf16_weight_gradient_sums_in_float32():
    """Thousands of equal contributions: summed in bf16 they would stall at 256."""
    coords = torch.cartesian_prod(*(torch.arange(18),) * 3).int()
    coords = torch.cat([torch.zeros(len(coords), 1, dtype=torch.int32), coords], dim=1)
    pyramid = build_pyramid("native", coords, 2)
    weight = torch.zeros(8, 1, 1, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        pyramid.downsample(torch.ones(len(coords), 1), weight, 0).sum().backward()
    assert weight.grad.flatten().tolist() == [729.0] * 8


def test_autocast_leaves_float64_alone():
    pyramid = build_pyramid("native", random_coords(), 2)
    expected = run_layer(pyramid, "conv", 27, (5, 7), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = run_layer(pyramid, "conv", 27, (5, 7), dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_minkowski
def test_minkowski_is_a_float32_island_under_autocast():
    pyramid = build_pyramid("minkowski", random_coords(), 2)
    expected = run_layer(pyramid, "conv", 27, (5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        found = run_layer(pyramid, "conv", 27, (5, 7))
        output = pyramid.conv(torch.ones(len(pyramid.coords(0)), 5, dtype=torch.bfloat16), torch.ones(27, 5, 7), 0)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert output.dtype == torch.float32


@pytest.mark.parametrize(("operation", "num_offsets"), LAYERS)
@pytest.mark.parametrize("widths", [(5, 7), (100, 98)], ids=str)
def test_native_is_bitwise_repeatable(operation, num_offsets, widths):
    coords = random_coords(seed=4, num_draws=1000, extent=6)
    first, second = (run_layer(build_pyramid("native", coords, 2), operation, num_offsets, widths) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("operation", "num_offsets"), LAYERS)
def test_native_takes_no_voxels_at_all(operation, num_offsets, dtype):
    pyramid = build_pyramid("native", torch.empty(0, 4, dtype=torch.int32), 3)
    for widths in ((5, 7), (100, 98)):
        output, grad_features, grad_weight = run_layer(pyramid, operation, num_offsets, widths, dtype=dtype)
        assert output.shape == (0, widths[1])
        assert grad_features.shape == (0, widths[0])
        assert not grad_weight.any()


@pytest.mark.parametrize("backend", ["native", pytest.param("minkowski", marks=needs_minkowski)])
def test_a_pyramid_and_its_output_serve_two_backward_passes(backend):
    pyramid = build_pyramid(backend, random_coords(), 2)
    features = torch.randn(len(pyramid.coords(0)), 5, requires_grad=True)
    weight = torch.randn(27, 5, 7, requires_grad=True)
    output = pyramid.conv(features, weight, 0)
    first = torch.autograd.grad(output.sum(), (features, weight), retain_graph=True)
    second = torch.autograd.grad(output.sum(), (features, weight))
    third = torch.autograd.grad(pyramid.conv(features, weight, 0).sum(), (features, weight))
    for a, b, c in zip(first, second, third, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_frozen_operands_get_no_gradient():
    pyramid = build_pyramid("native", random_coords(), 2)
    for operation, num_offsets in LAYERS[1:]:
        features = torch.randn(len(pyramid.coords(level_of(operation))), 5, requires_grad=True)
        weight = torch.randn(num_offsets, 5, 7, requires_grad=True)
        apply = getattr(pyramid, operation)
        apply(features.detach(), weight, level_of(operation)).sum().backward()
        assert features.grad is None
        assert weight.grad is not None
        weight.grad = None
        apply(features, weight.detach(), level_of(operation)).sum().backward()
        assert features.grad is not None
        assert weight.grad is None


@needs_minkowski
def test_minkowski_leaves_the_number_of_threads_alone():
    """By default its coordinate manager sets OpenMP, hence every GEMM of torch, to all cores."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        run_layer(build_pyramid("minkowski", random_coords(), 2), "conv", 27, (5, 7))
        assert "omp_get_max_threads() : 3" in torch.__config__.parallel_info()
    finally:
        torch.set_num_threads(before)


@needs_minkowski
def test_minkowski_refuses_no_voxels_and_float64():
    with pytest.raises(ValueError, match=r"no voxels.*use the native backend"):
        minkowski.MinkowskiPyramid(torch.empty(0, 4, dtype=torch.int32), 2)
    pyramid = build_pyramid("minkowski", random_coords(), 2)
    with pytest.raises(ValueError, match=r"torch\.float64.*computes in float32"):
        run_layer(pyramid, "conv", 27, (5, 7), dtype=torch.float64)


def test_missing_minkowski_names_the_extra_and_the_command(monkeypatch):
    real_import = builtins.__import__

    def import_without_minkowski(name, *args, **kwargs):
        if name.startswith("MinkowskiEngine"):
            raise ImportError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    minkowski.load_minkowski_engine.cache_clear()
    monkeypatch.setattr(builtins, "__import__", import_without_minkowski)
    with pytest.raises(ImportError, match=r"make env(.|\n)*--no-cache-dir(.|\n)*text4point\[minkowski\]"):
        build_pyramid("minkowski", random_coords(), 2)
    assert build_pyramid("auto", random_coords(), 2).num_levels == 2


BACKENDS = ["native", pytest.param("minkowski", marks=needs_minkowski)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_operands_that_do_not_fit_are_refused(backend):
    pyramid = build_pyramid(backend, random_coords(), 2)
    num_voxels = len(pyramid.coords(0))
    features = torch.zeros(num_voxels, 5)
    with pytest.raises(ValueError, match=f"level 0 of the pyramid has {num_voxels} voxels"):
        pyramid.conv(features[1:], torch.zeros(27, 5, 7), 0)
    with pytest.raises(ValueError, match=r"weight has shape \(27, 4, 7\)"):
        pyramid.conv(features, torch.zeros(27, 4, 7), 0)
    with pytest.raises(ValueError, match="odd K"):
        pyramid.conv(features, torch.zeros(64, 5, 7), 0)
    with pytest.raises(ValueError, match="odd K"):
        pyramid.conv(features, torch.zeros(26, 5, 7), 0)
    with pytest.raises(ValueError, match=r"wanted \(8, Cin, Cout\)"):
        pyramid.downsample(features, torch.zeros(27, 5, 7), 0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("operation", "level"), [("conv", -1), ("conv", 2), ("downsample", 1), ("upsample", 0)])
def test_levels_outside_the_pyramid_are_refused(backend, operation, level):
    pyramid = build_pyramid(backend, random_coords(), 2)
    features, weight = torch.zeros(len(pyramid.coords(0)), 5), torch.zeros(27 if operation == "conv" else 8, 5, 7)
    with pytest.raises(ValueError, match=f"{operation} at level {level}: this pyramid allows levels"):
        getattr(pyramid, operation)(features, weight, level)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_native_on_cuda_equals_cpu_in_float64():
    coords = random_coords(seed=5, num_draws=1000, extent=6)
    cpu, cuda = build_pyramid("native", coords, 2), build_pyramid("native", coords.cuda(), 2)
    for operation, num_offsets in LAYERS:
        for widths in WIDTHS:
            level = level_of(operation)
            features = torch.randn(len(cpu.coords(level)), widths[0], dtype=torch.float64, requires_grad=True)
            weight = torch.randn(num_offsets, *widths, dtype=torch.float64, requires_grad=True)
            expected = getattr(cpu, operation)(features, weight, level)
            found = getattr(cuda, operation)(features.cuda(), weight.cuda(), level)
            grads = [torch.autograd.grad(output.square().sum(), (features, weight)) for output in (found, expected)]
            assert_close((found.detach().cpu(), *grads[0]), (expected.detach(), *grads[1]), 1e-12)
