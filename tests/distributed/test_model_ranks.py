"""The whole pre-training module on several gloo processes must train as one process that sees every frame.

Plain torch, float64, SGD, gradients averaged over ranks as DeepSpeed does: what remains between worlds is the order of
sums. The file is its own worker: `python test_model_ranks.py FOLDER`, once per rank, takes part in every world in turn.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from rank_processes import run_worlds, visit_worlds
from small_model import TINY_NETWORK
from torch import Tensor

import t4p.losses.contrastive as contrastive
import t4p.models.norm as norm_module
from t4p.config.data import AugmentConfig
from t4p.config.files import load_config
from t4p.config.tasks import PretrainConfig
from t4p.data.batch import PairRecipe
from t4p.data.decode import DecodedFrame
from t4p.data.sample import PreparedFrame, SampleSettings, prepare_frame
from t4p.models.clip import ClipTowers
from t4p.models.sparse.minkowski import load_minkowski_engine
from t4p.tasks.pretrain import PretrainModule, PretrainTask

pytestmark = pytest.mark.usefixtures("forked_python")

WORLD_SIZES = (1, 2, 3)
TOLERANCE = 1e-9
# Float32 over three steps; 4e-7 was measured.
TOLERANCE_FLOAT32 = 1e-5

CLIP_DIM = 16
NO_READING = 100  # a frame without any depth
# The frames of every step; rank r of W takes each W-th. Uneven counts, steps with fewer frames than ranks, a frame
# without a voxel, a step without a frame. The first three steps have an idle rank in worlds of two and of three.
FRAMES_OF_STEP: tuple[tuple[int, ...], ...] = (
    (0, 1, 2, 3, 4),
    (5,),
    (6, 7, 8),
    (),
    (NO_READING, 9, 10),
    (11, NO_READING),
    (12, 13),
    (14, 15, 16, 17),
    (0, 6),
    (1, 2, 3),
)
FEW_STEPS = 3
LEARNING_RATE = 0.05

SETTINGS = SampleSettings(
    image_size=(48, 64),
    cell_grid=(3, 4),
    decoder_grid=(6, 8),
    pixel_stride=2,
    max_depth=10.0,
    in_world=False,
    voxel_size=0.12,
    num_strides=2,
    point_features=("color", "position"),
    num_pairs_e=20,
    num_pairs_d=60,
    augment=AugmentConfig(),
    seed=0,
)


@dataclass(frozen=True)
class Trained:
    """What a rank has after each step, in float64.

    Attributes:
        terms: (steps, 7) what the module returns: losses and logit scales averaged over ranks, pairs summed.
        parameters: (steps, P).
        buffers: (steps, B).
    """

    terms: Tensor
    parameters: Tensor
    buffers: Tensor


def make_config(**overrides: object) -> PretrainConfig:
    return load_config(
        [],
        [
            "run.dir=unused",
            "data.shards=[unused]",
            "model.sparse_backend=native",
            "model.point_features=[color, position]",
            "model.embed_dim_d=8",
            *TINY_NETWORK,
            "model.decoder2d.hidden_channels=8",
            "model.decoder2d.upsample=2",
            *(f"{key}={value}" for key, value in overrides.items()),
        ],
    )


@cache
def make_sample(frame: int) -> PreparedFrame:
    """A bumpy wall about 2 m ahead, seen by real code from the depth image on."""
    rng = np.random.default_rng(frame)
    height, width = SETTINGS.image_size
    color = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    depth = np.kron(2000 + 500 * rng.random((6, 8)), np.ones((8, 8))).astype(np.uint16)
    depth[rng.random(depth.shape) < 0.2 * (frame % 4)] = 0  # frames differ in size
    if frame == NO_READING:
        depth[:] = 0
    K = np.array([[55.0, 0, 31.5], [0, 55.0, 23.5], [0, 0, 1]])
    return prepare_frame(DecodedFrame(color, depth, 1000.0, K, K, np.eye(4), None), f"room/{frame}", 0, SETTINGS)


class StandInTowers:
    """A frozen tower in float64, so that a frame's features do not depend on the frames beside it."""

    _mean = _std = torch.full((1, 3, 1, 1), 0.5)
    normalize = ClipTowers.normalize

    def to(self, device: torch.device) -> "StandInTowers":
        return self

    def encode_synonyms(self, words_of_label: object, template: str) -> Tensor:
        return torch.randn(5, CLIP_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def dense_features(self, images: Tensor) -> Tensor:
        projection = torch.randn(CLIP_DIM, 3 * 16 * 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        cells = F.unfold(images.double(), 16, stride=16)
        return (projection @ cells).tanh().unflatten(2, SETTINGS.cell_grid)


def inputs_of(task: PretrainTask, frames: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    """What PretrainModule takes, floats in the wanted type."""
    inputs = task.inputs(PairRecipe(SETTINGS).join([make_sample(frame) for frame in frames]))
    return [value.to(dtype) if value.is_floating_point() else value for value in inputs]


def train(config: PretrainConfig, num_steps: int, dtype: torch.dtype = torch.float64) -> Trained:
    """Train this rank of the world. Collective."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    module = PretrainModule(config.model, config.loss, CLIP_DIM).to(dtype)
    task = PretrainTask(StandInTowers(), config.model, torch.device("cpu"), None, "fp32")
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE)
    terms, parameters, buffers = [], [], []
    for frames in FRAMES_OF_STEP[:num_steps]:
        results = torch.stack(module(*inputs_of(task, frames[rank::world_size], dtype)))
        optimizer.zero_grad()
        results[0].backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size
        optimizer.step()
        of_all = results.detach().double()
        dist.all_reduce(of_all)
        of_all[:5] /= world_size
        terms.append(of_all)
        parameters.append(flat(module.parameters()))
        buffers.append(flat(module.buffers()))
    return Trained(torch.stack(terms), torch.stack(parameters), torch.stack(buffers))


def flat(tensors: object) -> Tensor:
    return torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors])


# --- planted bugs: each is one that public code has ---------------------------------------------------------------


def no_grad_gather(contributions: Tensor, counts: list[int]) -> Tensor:
    return contributions[dist.get_rank(), : counts[dist.get_rank()]]


def weight_of_local_mean(layout: contrastive.Layout) -> float:
    return 0.5 / max(layout.num_pairs[layout.rank], 1)


def weight_without_world_size(layout: contrastive.Layout) -> float:
    return 0.5 / max(sum(layout.num_pairs), 1)


PLANTED_BUGS: dict[str, Callable[[], AbstractContextManager]] = {
    "gather_without_gradient": lambda: patch.object(contrastive, "reduce_scatter_rows", no_grad_gather),
    "loss_scaled_by_the_local_count": lambda: patch.object(
        contrastive.Layout, "weight", property(weight_of_local_mean)
    ),
    "loss_not_scaled_by_world_size": lambda: patch.object(
        contrastive.Layout, "weight", property(weight_without_world_size)
    ),
    "batch_norm_of_each_rank_alone": lambda: patch.object(norm_module, "SyncRowBatchNorm", norm_module.RowBatchNorm),
    "batch_norm_backward_of_each_rank_alone": lambda: patch.object(
        norm_module, "all_reduce_sum", lambda tensor, group: tensor
    ),
}


# --- workers ------------------------------------------------------------------------------------------------------


def has_minkowski() -> bool:
    try:
        load_minkowski_engine()
    except ImportError:
        return False
    return True


def run_world(_: int, world_size: int) -> dict[str, dict[str, Tensor]]:
    config = make_config()
    found = {"right": train(config, len(FRAMES_OF_STEP))}
    if has_minkowski():
        # Checkpointed in the world of three: a rank without voxels is native and saves other tensors than the others,
        # but all must meet in the collectives of the second forward.
        overrides = {"model.sparse_backend": "minkowski", "model.unet.activation_checkpointing": world_size == 3}
        found["minkowski"] = train(make_config(**overrides), FEW_STEPS, torch.float32)
    if world_size == 2:
        checkpointing = make_config(**{"model.unet.activation_checkpointing": True})
        found["checkpointed"] = train(checkpointing, len(FRAMES_OF_STEP))
        for name, plant in PLANTED_BUGS.items():
            with plant():
                found[name] = train(config, FEW_STEPS)
    return {name: vars(trained) for name, trained in found.items()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Trained]]]:
    """By world size, what each of its ranks found."""
    worlds = run_worlds(__file__, WORLD_SIZES, tmp_path_factory.mktemp("ranks"))
    return {
        world_size: [{name: Trained(**tensors) for name, tensors in report.items()} for report in reports]
        for world_size, reports in worlds.items()
    }


def largest_error(found: Trained, wanted: Trained) -> float:
    """Over losses, parameters and buffers after every step, relative to what is larger than 1."""
    errors = []
    for name, values in vars(found).items():
        reference = getattr(wanted, name)[: len(values)]
        errors.append(((values - reference).abs() / reference.abs().clamp_min(1)).max().nan_to_num(torch.inf))
    return float(max(errors))


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_ten_steps_of_several_ranks_equal_those_of_one(found, world_size):
    (alone,) = found[1]
    for rank in found[world_size]:
        assert largest_error(rank["right"], alone["right"]) < TOLERANCE


def test_the_steps_are_worth_comparing(found):
    """Losses of pairs from all frames, parameters and running statistics that move."""
    (alone,) = found[1]
    right = alone["right"]
    with_pairs = [index for index, frames in enumerate(FRAMES_OF_STEP) if set(frames) - {NO_READING}]
    assert (right.terms[with_pairs, :3] > 0.5).all()
    for values in (right.parameters, right.buffers):
        assert all((values[a] - values[b]).abs().max() > 1e-3 for a, b in pairwise(with_pairs))


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_parameters_and_buffers_are_the_same_bits_on_every_rank(found, world_size):
    first, *others = (rank["right"] for rank in found[world_size])
    for other in others:
        assert torch.equal(other.parameters, first.parameters)
        assert torch.equal(other.buffers, first.buffers)


def test_activation_checkpointing_changes_no_bit_of_two_ranks(found):
    for rank in found[2]:
        for name, values in vars(rank["checkpointed"]).items():
            assert torch.equal(values, getattr(rank["right"], name)), name


@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_minkowski_trains_on_several_ranks_too(found, world_size):
    (alone,) = found[1]
    if "minkowski" not in alone:
        pytest.skip("MinkowskiEngine is not installed")
    assert largest_error(alone["minkowski"], alone["right"]) < TOLERANCE_FLOAT32
    for rank in found[world_size]:
        assert largest_error(rank["minkowski"], alone["minkowski"]) < TOLERANCE_FLOAT32


@pytest.mark.parametrize("bug", PLANTED_BUGS)
def test_the_comparison_rejects_a_planted_bug(found, bug):
    (alone,) = found[1]
    for rank in found[2]:
        assert largest_error(rank[bug], alone["right"]) > 1000 * TOLERANCE


if __name__ == "__main__":
    visit_worlds(WORLD_SIZES, Path(sys.argv[1]), run_world)
