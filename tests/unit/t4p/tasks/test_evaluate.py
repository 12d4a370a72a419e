"""Scores of networks and of the image tower on rooms that are made here, with the small CLIP."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from commands.evaluate import title_of
from shards.errors import CallError
from shards.packing.pack import pack
from shards.reader import DatasetReader
from t4p.config.data import EvaluatedDataConfig
from t4p.config.files import load_config, load_config_of
from t4p.config.tasks import PretrainConfig, SemanticConfig
from t4p.data.fetch import Catalogue
from t4p.data.labelled import LabelledBatch
from t4p.data.labels import IGNORED
from t4p.data.stream import ValidationStream
from t4p.losses.segmentation import balanced_cross_entropy
from t4p.metrics.semantic import best_trivial_miou, scores
from t4p.models.exported import ExportedNetwork
from t4p.models.prompts import PromptedLabels
from t4p.models.score_map import VoxelScores
from t4p.models.towers import load_towers_from
from t4p.tasks import named_groups
from t4p.tasks.evaluate import features_of_voxels, label_points, predict, score_network
from t4p.tasks.finetune import label_recipe
from t4p.tasks.named_groups import score_named_groups
from t4p.tasks.pretrain import PretrainModule, untrained_network
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
    stopped, nothing = net(coords, features, text, read="bottleneck")
    assert torch.equal(expanded, stopped)
    assert (len(decoded), len(nothing)) == (len(coords), 0)


def test_points_of_a_scene_are_labelled_in_its_order(config, scenes):
    ((predicted, target),) = label_points(untrained_network(config), scored_on(scenes))
    scene = DatasetReader(scenes).read_scene(0, 0)
    assert predicted.shape == target.shape == (len(scene.points),)
    np.testing.assert_array_equal(target.numpy(), scene.semantic.astype(np.int64) - 1)  # 0 is unlabelled


def test_labels_that_are_right_come_to_instances(config, scenes, monkeypatch):
    network = untrained_network(config)
    recipe = label_recipe(finetuning(scenes, "linear")[0], Catalogue([scenes]), False)
    truth = next(ValidationStream(Catalogue([scenes]), recipe, 0).batches()).label_of_voxel
    right = torch.nn.functional.one_hot(truth.clamp(min=0), len(network.labels)).float()
    poor = score_named_groups(network, scored_on(scenes), lambda *_: None)
    monkeypatch.setattr(named_groups, "voxel_scores", lambda *_: VoxelScores(right, right))
    good = score_named_groups(network, scored_on(scenes), lambda *_: None)
    assert good.columns == ("AP", "AP50", "AP25")
    assert good.protocol == "neighbouring groups of one label, ScanNet's protocol on points"
    assert title_of(network, good) == "Instances without a head"
    assert good.means[1] > 0.6 > 2 * poor.means[1]  # not 1: chairs that touch are one


def test_whoever_looks_at_the_samples_is_told_their_own_scores_and_all_of_them_are_the_whole(config, frames):
    network, seen = untrained_network(config), []
    whole = score_network(network, scored_on(frames), on_sample=seen.append)
    assert [sample.key for sample in seen] == [
        f"room-12-0000{room}/000{frame}" for room in range(3) for frame in range(3)
    ]
    labels = range(len(network.labels))
    summed = scores(sum(sample.counts for sample in seen), labels)
    assert summed.to_json(network.labels) == whole.to_json(network.labels)
    for sample in seen:
        assert sample.score == scores(sample.counts, labels).miou
        assert len(sample.points) == len(sample.predicted) == len(sample.truth)
    features = features_of_voxels(network, seen[0].batch)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    same = seen[0].batch.bottleneck_of_voxel.numpy()
    assert (features == features[np.unique(same, return_index=True)[1]][np.unique(same, return_inverse=True)[1]]).all()


def test_a_tower_sees_no_scenes(config, scenes):
    with pytest.raises(CallError, match="holds scenes"):
        score_teacher(config, scored_on(scenes))


def finetuning(frames: str, head: str) -> tuple[SemanticConfig, SemanticModule]:
    """A configuration and its module with random weights."""
    overrides = [f"data.shards={json.dumps([frames])}", "run.dir=unused", f"model.head={head}"]
    config = load_config_of(SemanticConfig, ["configs/finetune/rooms.yaml"], overrides)
    towers = load_towers_from(config.model.clip, 0)
    prompted = PromptedLabels(towers, config.model.label_words, config.model.text_query.template, None)
    torch.manual_seed(config.run.seed)
    return config, SemanticModule(config.model, config.loss, prompted, towers.embed_dim).eval()


def batch_of(config: SemanticConfig, frames: str) -> LabelledBatch:
    recipe = label_recipe(config, Catalogue([frames]), False)
    return next(ValidationStream(Catalogue([frames]), recipe, 0).batches())


@torch.no_grad()
def exported_of(config: PretrainConfig | SemanticConfig, module: SemanticModule) -> ExportedNetwork:
    return ExportedNetwork(config, 1, module.net, config.model.labels, module.embed_labels(), "towers", {}, 1.0, {})


def test_a_head_of_words_begins_with_the_zero_shot_prediction(frames, config):
    finetune, module = finetuning(frames, "words")
    batch = batch_of(finetune, frames)
    zero_shot = predict(exported_of(config, module), batch)
    assert len(zero_shot.unique()) > 1
    assert torch.equal(predict(exported_of(finetune, module), batch), zero_shot)


@pytest.mark.parametrize("head", ["linear", "words"])
@torch.no_grad()
def test_an_export_predicts_what_validation_does(frames, head):
    config, module = finetuning(frames, head)
    torch.nn.init.normal_(module.net.head.weight)
    batch = batch_of(config, frames)
    text = module.embed_labels()
    found = module.segment(batch.voxel_coords, batch.voxel_features, batch.bottleneck_of_voxel, text)
    wanted = found.voxel_scores.argmax(dim=1)
    assert not torch.equal(wanted, found.score_map.argmax(dim=1)[batch.bottleneck_of_voxel]), "the head counts"
    assert torch.equal(predict(exported_of(config, module), batch), wanted)


def test_a_label_that_nobody_shows_is_pushed_nowhere(frames):
    """Not by the head, and not by the score map; one that an earlier step has shown is a negative again."""
    config, module = finetuning(frames, "words")
    batch = batch_of(config, frames)
    chair = config.model.labels.index("chair")
    labels = [
        torch.where(label == chair, IGNORED, label) for label in (batch.label_of_voxel, batch.label_of_bottleneck)
    ]
    voxels = batch.voxel_coords, batch.voxel_features, batch.bottleneck_of_voxel
    segmented = module.segment(*voxels, module.embed_labels())

    def losses(asked: torch.Tensor | None) -> list[torch.Tensor]:
        return [
            balanced_cross_entropy(scores, label, config.loss.class_balance, asked)
            for scores, label in zip((segmented.voxel_scores, segmented.score_map), labels, strict=True)
        ]

    shown = torch.zeros(len(config.model.labels), dtype=torch.bool)
    shown[[label for label in torch.cat(labels).unique().tolist() if label != IGNORED]] = True
    assert 1 < shown.sum() < len(shown) - 1
    assert not shown[chair]
    loss, *terms, _ = module(*voxels, *labels)
    for found, wanted, with_all in zip(terms, losses(shown), losses(None), strict=True):
        torch.testing.assert_close(found, wanted)
        assert with_all > found + 1e-3, "what is not shown would have counted"
    loss.backward()
    assert not module.net.head.weight.grad[~shown].any()
    assert module.net.head.weight.grad[shown].any()
    module(*voxels, *(torch.full_like(label, chair) for label in labels))
    _, *terms, _ = module(*voxels, *labels)
    shown[chair] = True
    for found, wanted in zip(terms, losses(shown), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_score_map_is_a_float32_cosine_under_autocast(frames):
    """In bf16 a cosine over this temperature would be off by 0.06."""
    config, module = finetuning(frames, "linear")
    coords = torch.unique(torch.randint(0, 12, (200, 4)).int() * torch.tensor([0, 1, 1, 1], dtype=torch.int32), dim=0)
    features = torch.randn(len(coords), 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        text = module.embed_labels()
        expanded, _ = module.net(coords, features, text)
        found = module.segment(coords, features, torch.zeros(len(coords), dtype=torch.int64), text).score_map
    expanded = torch.nn.functional.normalize(expanded.float(), dim=1)
    wanted = config.loss.logit_scale * expanded @ text.float().T
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 1e-4
