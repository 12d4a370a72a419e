"""A scan that is larger than a tile or a piece: what is said of it is what is said of it at once, in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shards.reader import DatasetReader
from t4p.config.kinds import task_named
from t4p.config.tasks import DetectionConfig, InstanceConfig
from t4p.models.exported import ExportedNetwork
from t4p.models.sparse import tiles
from t4p.models.text4point import build_text4point
from t4p.tasks import detection, instance, pieces
from t4p.tasks.model import Model

OLDER = Path(__file__).resolve().parents[3] / "data" / "older"
LABELS = ["chair", "table", "wall"]
DIM = 16


def made_model(task: str, **model) -> Model:
    """A small network with random weights."""
    torch.manual_seed(0)
    unet = {"plan": "Res16UNet14A", "num_strides": 2, "stem_channels": 8, "encoder_channels": [8, 12]}
    tree = {
        "task": task,
        "run": {"dir": "a"},
        "data": {"shards": ["b"]},
        "model": {
            "labels": LABELS,
            "voxel_size": 0.04,
            "unet": unet | {"decoder_channels": [12, 8]},
            "text_query": {"num_heads": 4},
        }
        | model,
    }
    config = task_named(task).schema.model_validate(tree)
    net = build_text4point(config.model, DIM, task_named(task).out_dim(config))
    head = None
    if isinstance(config, InstanceConfig):
        head = instance.build_head(config, DIM)
    if isinstance(config, DetectionConfig):
        head = detection.build_head(config, net, DIM)
        torch.nn.init.constant_(head.class_bias, 0.0)
    beside = {} if head is None else {f"head.{name}": value for name, value in head.state_dict().items()}
    text = torch.nn.functional.normalize(torch.randn(len(LABELS), DIM), dim=1)
    net.eval().requires_grad_(False)
    return Model(ExportedNetwork(config, 0, net, tuple(LABELS), text, "", {}, 1.0, beside))


@pytest.fixture(scope="module")
def scene() -> tuple[np.ndarray, np.ndarray]:
    stored = DatasetReader(str(OLDER / "scenes")).read_scene(0, 0)
    return stored.points, stored.rgb


def passes_of(model: Model) -> list[object]:
    """Grows with every pass of its network."""
    seen: list[object] = []
    model._exported.net.register_forward_hook(lambda *_: seen.append(None))
    return seen


@pytest.mark.parametrize("task", ["pretrain", "semantic"])
def test_labels_and_features_come_of_one_pass_and_are_the_same_in_tiles(
    scene, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    model = made_model(task)
    passes = passes_of(model)
    whole = model.describe(*scene)
    assert len(passes) == 1
    ids, scores = model.classify(*scene)
    np.testing.assert_array_equal(scores, whole.scores[whole.voxel_of_point])
    np.testing.assert_array_equal(model.embed(*scene), whole.features[whole.row_of_point])
    monkeypatch.setattr(tiles, "TILE_VOXELS", len(whole.scores) // 8)
    found = model.describe(*scene)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-5 * np.abs(whole.scores).max())
    np.testing.assert_allclose(found.features, whole.features, atol=1e-5)
    np.testing.assert_array_equal(found.scores.argmax(axis=1)[found.voxel_of_point], ids)
    np.testing.assert_allclose(model.embed(*scene), whole.features[whole.row_of_point], atol=1e-5)


@pytest.mark.parametrize(("task", "settings"), [("detection", {}), ("instance", {}), ("instance", {"masks": "votes"})])
def test_objects_and_features_come_of_one_pass_and_are_the_same_in_tiles(
    scene, monkeypatch: pytest.MonkeyPatch, task: str, settings: dict[str, str]
) -> None:
    model = made_model(task, **settings)
    passes = passes_of(model)
    whole = model.find_objects(*scene)
    assert len(passes) == 1
    assert len(whole.scores) > 1
    np.testing.assert_array_equal(model.embed(*scene), whole.features[whole.row_of_point])
    if task == "detection":
        boxes, label_ids, scores = model.detect(*scene)
        np.testing.assert_array_equal(boxes, whole.boxes)
        with pytest.raises(ValueError, match="groups are what masks are made of, and this network finds boxes"):
            model.find_objects(*scene, groups=np.zeros(len(scene[0]), int))
    else:
        masks, label_ids, scores = model.segment_instances(*scene)
        assert [np.flatnonzero(mask).tolist() for mask in masks] == [rows.tolist() for rows in whole.points_of]
    np.testing.assert_array_equal(label_ids, whole.label_ids)
    np.testing.assert_allclose(scores, whole.scores, rtol=1e-6)
    for box, rows in zip(whole.boxes, whole.points_of, strict=True):
        if task == "instance":
            np.testing.assert_allclose(box[:3] + box[3:6] / 2, scene[0][rows].max(axis=0), atol=1e-6)
    sure = model.find_objects(*scene, least_score=float(np.median(whole.scores)))
    assert len(sure.scores) == (whole.scores >= np.median(whole.scores)).sum()
    monkeypatch.setattr(tiles, "TILE_VOXELS", 500)
    found = model.find_objects(*scene)
    np.testing.assert_array_equal(found.label_ids, whole.label_ids)
    np.testing.assert_allclose(found.boxes, whole.boxes, atol=1e-3)
    np.testing.assert_allclose(found.scores, whole.scores, atol=1e-4)


@pytest.mark.parametrize("masks", ["queries", "votes"])
def test_in_pieces_the_network_still_sees_all_of_a_scan_once(
    scene, monkeypatch: pytest.MonkeyPatch, masks: str
) -> None:
    model = made_model("instance", masks=masks)
    whole = model.find_objects(*scene)
    monkeypatch.setattr(pieces, "PIECE_VOXELS", 600)
    monkeypatch.setattr(pieces, "OVERLAP", 0.3)
    passes = passes_of(model)
    found = model.find_objects(*scene)
    assert len(passes) == 1
    np.testing.assert_array_equal(found.features, whole.features)
    assert len(found.scores) > 1
    assert (np.diff(found.scores) <= 0).all()
    for rows in found.points_of:
        assert len(rows)
        assert (np.diff(rows) > 0).all()
