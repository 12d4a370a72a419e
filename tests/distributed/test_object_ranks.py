"""Instance segmentation and detection on several gloo ranks must be those on one, with the batch spread unevenly.

The file is its own worker: every rank takes its share of the same made rooms in every world, and one of three has none.
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

import t4p.losses.detection as detection_losses
import t4p.losses.instance as instance_losses
import t4p.models.offset_votes as offset_votes
from shards.scene import Scene
from t4p.config.files import load_config_of
from t4p.config.tasks import DetectionConfig, InstanceConfig
from t4p.data.labelled import LabelRecipe
from t4p.data.labels import build_label_table
from t4p.data.objects import ObjectRecipe, ObjectSample
from t4p.tasks import detection, instance

pytestmark = pytest.mark.usefixtures("forked_python")

WORLD_SIZES = (1, 2, 3)
NUM_SAMPLES = 2  # a world of 3 has a rank without any
TOLERANCE = 1e-9
CLIP_DIM = 12
LABELS = ("chair", "table")
NAMES = ("unlabelled", "wall", *LABELS)
VOXEL_SIZE = 0.1
COMMON = [
    "run.dir=unused",
    "data.shards=[unused]",
    "model.sparse_backend=native",
    "model.point_features=[color, position]",
    f"model.voxel_size={VOXEL_SIZE}",
    "model.labels=[chair, table]",
    *TINY_NETWORK,
]
CASES = {
    "queries": (InstanceConfig, ["model.mask_channels=6", "model.decoder.dim=8", "model.decoder.num_heads=2"]),
    "votes": (InstanceConfig, ["model.mask_channels=6", "model.masks=votes"]),
    "boxes": (DetectionConfig, ["model.head_channels=8"]),
    "turned boxes": (DetectionConfig, ["model.head_channels=8", "model.boxes=oriented"]),
}
PLANTED = {
    "matches of this rank alone": ("queries", instance_losses, "all_reduce_sum", lambda counts: counts),
    "a mean over this rank alone": ("queries", instance_losses, "world_size", lambda: 1),
    "votes of this rank alone": ("votes", offset_votes, "all_reduce_sum", lambda counts: counts),
    "positives of this rank alone": ("boxes", detection_losses, "all_reduce_sum", lambda counts: counts),
}


def make_room(index: int) -> Scene:
    """A wall and index + 2 blocks."""
    rng = np.random.default_rng(index)
    wall = rng.random((150, 3)) * [3, 0.1, 2]
    points, semantic, ids = [wall], [np.full(150, 1)], [np.zeros(150)]
    for block in range(index + 2):
        points.append(rng.random((80, 3)) * rng.uniform(0.4, 0.8, 3) + [block, 1 + block % 2, 0])
        semantic.append(np.full(80, 2 + block % 2))
        ids.append(np.full(80, block + 1))
    count = sum(map(len, points))
    return Scene(
        dataset="made",
        scene_id=f"room {index}",
        points=np.concatenate(points).astype(np.float32),
        rgb=rng.integers(0, 255, (count, 3)).astype(np.uint8),
        semantic=np.concatenate(semantic).astype(np.uint8),
        instance=np.concatenate(ids).astype(np.uint16),
    )


def samples_of(case: str, rank: int, world_size: int) -> tuple[ObjectRecipe, list[ObjectSample]]:
    table = build_label_table(NAMES, LABELS, ("*",), "rooms")
    labels = LabelRecipe((table,), 1, 10.0, True, VOXEL_SIZE, 2, ("color", "position"), None, 0)
    is_detection = CASES[case][0] is DetectionConfig
    recipe = ObjectRecipe(labels, LABELS, "none", "axis_aligned" if is_detection else None)
    indices = range(rank, NUM_SAMPLES, world_size)
    return recipe, [recipe.make(make_room(index), 0, f"room/{index}", 0) for index in indices]


def one_step(rank: int, world_size: int, case: str) -> tuple[float, torch.Tensor]:
    """The loss and the gradient of all parameters, as DeepSpeed would average them."""
    schema, overrides = CASES[case]
    config = load_config_of(schema, [], [*COMMON, *overrides])
    torch.manual_seed(0)
    build, task = (
        (instance.InstanceModule, instance.InstanceTask)
        if isinstance(config, InstanceConfig)
        else (detection.DetectionModule, detection.DetectionTask)
    )
    module = build(config, StandInPrompts(LABELS, CLIP_DIM), CLIP_DIM).double()
    recipe, samples = samples_of(case, rank, world_size)
    inputs = task(config, torch.device("cpu"), None).inputs(recipe.join(samples))
    loss, *_ = module(*(value.double() if value.is_floating_point() else value for value in inputs))
    return averaged(loss, module, world_size)


def run_world(rank: int, world_size: int) -> dict[str, SimpleNamespace]:
    found = {case: one_step(rank, world_size, case) for case in CASES}
    for bug, (case, module, name, value) in PLANTED.items():
        with patch.object(module, name, value):
            found[bug] = one_step(rank, world_size, case)
    return found


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict]]:
    return run_worlds(__file__, WORLD_SIZES, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", WORLD_SIZES[1:])
def test_the_loss_and_every_gradient_are_those_of_one_process(worlds, world_size, case):
    wanted = worlds[1][0][case]
    assert float(wanted[1].abs().max()) > 1e-3
    for report in worlds[world_size]:
        assert difference(report[case], wanted) < TOLERANCE


@pytest.mark.parametrize("bug", PLANTED)
def test_the_check_rejects_a_planted_bug(worlds, bug):
    wanted = worlds[1][0][PLANTED[bug][0]]
    assert all(difference(report[bug], wanted) > 1e3 * TOLERANCE for report in worlds[2])


if __name__ == "__main__":
    visit_worlds(WORLD_SIZES, Path(sys.argv[1]), run_world)
