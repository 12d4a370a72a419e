"""Fine-tuning on several gloo ranks must be fine-tuning on one, with the batch spread unevenly and over idle ranks.

The file is its own worker: every rank takes its share of the same labelled clouds in every world.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from rank_processes import run_worlds, visit_worlds
from ranks_of_a_loss import StandInPrompts, averaged, difference
from small_model import TINY_NETWORK

import t4p.losses.segmentation as segmentation
import t4p.tasks.semantic as semantic
from t4p.config.files import load_config_of
from t4p.config.tasks import SemanticConfig
from t4p.data.labelled import LabelledSample, LabelRecipe
from t4p.data.labels import IGNORED, build_label_table
from t4p.data.transforms import coarsen, majority_label, voxel_features, voxelize
from t4p.tasks.semantic import SemanticModule

pytestmark = pytest.mark.usefixtures("forked_python")

WORLD_SIZES = (1, 2, 3)
NUM_SAMPLES = 4  # in a world of 3 one rank has two, and sample 3 has no label at all
TOLERANCE = 1e-9
CLIP_DIM = 12
LABELS = ("a", "b", "c", "of sample 2", "of none")
HEADS = ("linear", "words")
PLANTED = {
    "counts of this rank alone": ("linear", segmentation, "all_reduce_sum", lambda counts: counts),
    "a mean over this rank alone": ("linear", segmentation, "world_size", lambda: 1),
    "labels that this rank alone has seen": ("words", semantic, "all_reduce_sum", lambda counts: counts),
}


def make_sample(index: int) -> LabelledSample:
    rng = np.random.default_rng(index)
    num_points = 60 + 50 * index
    points = torch.from_numpy(rng.random((num_points, 3)).astype(np.float32))
    labels = rng.choice([IGNORED, 0, 1, 2], num_points, p=[0.3, 0.5, 0.1, 0.1]) if index < 3 else None
    labels = np.full(num_points, IGNORED) if labels is None else labels
    if index == 2:
        labels = np.where(labels == 1, 3, labels)
    labels = torch.from_numpy(labels)
    voxels = voxelize(points, 0.1)
    count = len(voxels.voxel_coords)
    coarse = coarsen(voxels.voxel_coords, 2)
    means = voxels.means(points)
    of_point = coarse.voxel_of_point[voxels.voxel_of_point]
    return LabelledSample(
        key=f"cloud/{index}",
        voxel_coords=voxels.voxel_coords,
        voxel_features=voxel_features(means, means, ("color", "position")),
        label_of_voxel=majority_label(labels, voxels.voxel_of_point, count, len(LABELS)),
        label_of_bottleneck=majority_label(labels, of_point, len(coarse.voxel_coords), len(LABELS)),
        bottleneck_of_voxel=coarse.voxel_of_point,
        voxel_of_point=voxels.voxel_of_point,
        label_of_point=labels,
    )


def one_step(rank: int, world_size: int, head: str) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of all parameters, as DeepSpeed would average them."""
    config = load_config_of(
        SemanticConfig,
        [],
        [
            "run.dir=unused",
            "data.shards=[unused]",
            "model.sparse_backend=native",
            "model.point_features=[color, position]",
            f"model.head={head}",
            *TINY_NETWORK,
        ],
    )
    torch.manual_seed(0)
    module = SemanticModule(config.model, config.loss, StandInPrompts(LABELS, CLIP_DIM), CLIP_DIM).double()
    torch.nn.init.normal_(module.net.head.weight)  # a head of words begins at 0, and nothing would pass it
    table = build_label_table(LABELS, LABELS, (), "clouds")
    recipe = LabelRecipe((table,), 1, 10.0, True, 0.1, 2, ("color", "position"), None, 0)
    batch = recipe.join([make_sample(index) for index in range(rank, NUM_SAMPLES, world_size)])
    loss, *_ = module(
        batch.voxel_coords,
        batch.voxel_features.double(),
        batch.bottleneck_of_voxel,
        batch.label_of_voxel,
        batch.label_of_bottleneck,
    )
    return averaged(loss, module, world_size)


def run_world(rank: int, world_size: int) -> dict[str, SimpleNamespace]:
    found = {head: one_step(rank, world_size, head) for head in HEADS}
    for bug, (head, module, name, value) in PLANTED.items():
        with patch.object(module, name, value):
            found[bug] = one_step(rank, world_size, head)
    return found


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    return run_worlds(__file__, WORLD_SIZES, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_the_loss_and_every_gradient_are_those_of_one_process(worlds, world_size, head):
    wanted = worlds[1][0][head]
    assert float(wanted[1].abs().max()) > 1e-3
    for report in worlds[world_size]:
        assert difference(report[head], wanted) < TOLERANCE


@pytest.mark.parametrize("bug", PLANTED)
def test_the_check_rejects_a_planted_bug(worlds, bug):
    wanted = worlds[1][0][PLANTED[bug][0]]
    assert all(difference(report[bug], wanted) > 1e3 * TOLERANCE for report in worlds[2])


if __name__ == "__main__":
    visit_worlds(WORLD_SIZES, Path(sys.argv[1]), run_world)
