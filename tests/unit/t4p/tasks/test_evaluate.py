"""Scores of networks and of the image tower on rooms that are made here, with the small CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from shards.pack import pack
from shards.reader import DatasetReader
from shards.schema import CallError
from t4p.config import EvaluatedDataConfig, FinetuneConfig, PretrainConfig
from t4p.config_files import load_config, load_config_of
from t4p.metrics.semantic import best_trivial_miou
from t4p.models.prompts import PromptedLabels
from t4p.tasks.evaluate import label_points, score_network
from t4p.tasks.pretrain import PretrainModule, load_towers_from, untrained_network
from t4p.tasks.semantic import SemanticModule
from t4p.tasks.teacher import score_teacher


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("frames") / "frames")
    pack("synthetic", "seed=12,rooms=3,frames=3", folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("scenes") / "scenes")
    pack("synthetic-scenes", "seed=12,rooms=1,frames=6", folder)
    return folder


@pytest.fixture(scope="module")
def config(frames: str) -> PretrainConfig:
    return load_config(["configs/pretrain/rooms.yaml"], [f"data.shards={json.dumps([frames])}", "run.dir=unused"])


def scored_on(url: str) -> EvaluatedDataConfig:
    return EvaluatedDataConfig(shards=(url,), num_workers=0)


def test_the_tower_and_the_network_are_scored_on_the_same_points_and_the_tower_knows_the_rooms(config, frames):
    done = []
    teacher = score_teacher(config, scored_on(frames), lambda *count: done.append(count))
    network = score_network(untrained_network(config), scored_on(frames))
    assert done == [(number, 9) for number in range(1, 10)]
    assert teacher.support == network.support
    trivial = best_trivial_miou(teacher.support.values())
    assert teacher.miou > 0.3 > 2 * trivial  # shipped with 0.52 on sixty rooms
    assert network.miou < 2 * trivial


def test_points_thinned_out_stay_the_same_for_both(config, frames):
    data = scored_on(frames).model_copy(update={"pixel_stride": 3, "max_depth": 2.5})
    assert score_teacher(config, data).support == score_network(untrained_network(config), data).support


def test_the_untrained_network_is_the_one_that_pre_training_begins_with(config):
    torch.manual_seed(config.run.seed)
    begins = PretrainModule(config.model, config.loss, 64).net
    untrained = untrained_network(config)
    for (name, value), (_, wanted) in zip(untrained.net.state_dict().items(), begins.state_dict().items(), strict=True):
        assert torch.equal(value, wanted), name
    assert not untrained.net.training


def test_the_bottleneck_is_the_same_without_the_decoder(config):
    net, text = untrained_network(config).net, torch.randn(3, 64)
    coords = torch.unique(torch.randint(0, 12, (200, 4)).int() * torch.tensor([0, 1, 1, 1], dtype=torch.int32), dim=0)
    features = torch.randn(len(coords), 2)
    expanded, decoded = net(coords, features, text)
    stopped, nothing = net(coords, features, text, decode=False)
    assert torch.equal(expanded, stopped)
    assert (len(decoded), len(nothing)) == (len(coords), 0)


def test_points_of_a_scene_are_labelled_in_its_order(config, scenes):
    ((predicted, target),) = label_points(untrained_network(config), scored_on(scenes))
    scene = DatasetReader(scenes).read_scene(0, 0)
    assert predicted.shape == target.shape == (len(scene.points),)
    np.testing.assert_array_equal(target.numpy(), scene.semantic.astype(np.int64) - 1)  # 0 is unlabelled


def test_a_tower_sees_no_scenes(config, scenes):
    with pytest.raises(CallError, match="holds scenes"):
        score_teacher(config, scored_on(scenes))


def test_the_score_map_is_a_float32_cosine_under_autocast(frames):
    """In bf16 a cosine over this temperature would be off by 0.06."""
    config = load_config_of(
        FinetuneConfig, ["configs/finetune/rooms.yaml"], [f"data.shards={json.dumps([frames])}", "run.dir=unused"]
    )
    towers = load_towers_from(config.model.clip, 0)
    prompted = PromptedLabels(towers, config.model.labels, config.model.text_query.template, None)
    torch.manual_seed(0)
    module = SemanticModule(config.model, config.loss, prompted, towers.embed_dim).eval()
    coords = torch.unique(torch.randint(0, 12, (200, 4)).int() * torch.tensor([0, 1, 1, 1], dtype=torch.int32), dim=0)
    features = torch.randn(len(coords), 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        text = module.embed_labels()
        expanded, _ = module.net(coords, features, text)
        found = module.segment(coords, features, text).score_map
    expanded = torch.nn.functional.normalize(expanded.float(), dim=1)
    wanted = config.loss.logit_scale * expanded @ text.float().T
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-4
