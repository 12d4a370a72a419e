"""Predictions in ScanNet's layout: read back they are what was written, and what does not belong there is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_dataset import blank_manifest, write_samples
from read_submission import read_labels, read_masks

from shards.errors import CallError, ResultError
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.sample import members_of_sample
from shards.schema import sample_key
from t4p.config.data import EvaluatedDataConfig
from t4p.config.files import load_config
from t4p.errors import ConfigError, DataError
from t4p.metrics.scannet import SCANNET_IDS, scannet_ids
from t4p.metrics.semantic import evaluate
from t4p.tasks.evaluate import score_network
from t4p.tasks.pretrain import untrained_network
from t4p.tasks.submission import Submission, check_folder, write_submission

LABELS = ("wall", "floor", "chair", "table", "bookshelf", "bathtub")


def test_masks_come_back_with_their_classes_and_without_new_ties(tmp_path):
    rng = np.random.default_rng(0)
    for number, (num_masks, num_points) in enumerate([(0, 5), (1, 1), (7, 300), (120, 40)]):
        masks = rng.random((num_masks, num_points)) < 0.3
        class_ids = rng.integers(0, len(LABELS), num_masks)
        scores = np.nextafter(np.float32(0.5), np.float32(1)) * np.ones(num_masks, np.float32)
        scores[::2] = np.float32(0.5)  # the next smaller one
        submission = Submission(tmp_path, scannet_ids(LABELS), tmp_path)
        submission.add_masks(sample_key(f"scene{number:04d}_00", "whole"), masks, class_ids, scores)
        found = read_masks(tmp_path / f"scene{number:04d}_00.txt")
        np.testing.assert_array_equal(found[0].reshape(masks.shape), masks)
        np.testing.assert_array_equal(found[1], [SCANNET_IDS[LABELS[row]] for row in class_ids])
        np.testing.assert_array_equal(found[2].astype(np.float32), scores)
    assert (tmp_path / "scene0003_00.txt").read_text().startswith("predicted_masks/scene0003_00_000.txt ")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two rooms, and the same without anything that is true of them."""
    folder = tmp_path_factory.mktemp("scenes")
    pack("synthetic-scenes", "seed=11,rooms=2,frames=6", str(folder / "labelled"))
    reader = DatasetReader(str(folder / "labelled"))
    bare = [
        (reader.key(0, row), members_of_sample(replace(scene, semantic=None, instance=None, boxes=None)))
        for row in range(2)
        for scene in (reader.read_scene(0, row),)
    ]
    write_samples(folder / "bare", bare, folder / "scratch", blank_manifest("scenes"))
    return str(folder / "labelled"), str(folder / "bare")


def test_a_folder_scores_as_the_network_does_and_needs_no_truth(scenes, tmp_path):
    labelled, _ = scenes
    overrides = [f"data.shards={json.dumps([labelled])}", "run.dir=unused", f"model.labels={json.dumps(LABELS)}"]
    exported = untrained_network(load_config(["configs/pretrain/rooms.yaml"], overrides))
    scored = []
    for url in scenes:
        data = EvaluatedDataConfig(shards=(url,), num_workers=0, ignored_labels=("*",))
        with write_submission(tmp_path / Path(url).name, LABELS, "labels") as submission:
            scored.append(score_network(exported, data, on_labels=submission.add_labels))
    reader = DatasetReader(labelled)
    rooms = [reader.read_scene(0, row) for row in range(2)]
    ids_of_names = np.array([SCANNET_IDS[name] if name in LABELS else 0 for name in reader.manifest.label_names])
    said = [read_labels(tmp_path / "labelled" / f"{room.scene_id}.txt") for room in rooms]
    found = evaluate(said, [ids_of_names[room.semantic] for room in rooms], scannet_ids(LABELS).tolist(), (0,))
    assert len(np.unique(np.concatenate(said))) > 1
    assert found.miou == scored[0].miou > 0
    assert list(found.iou.values()) == pytest.approx(list(scored[0].iou.values()), nan_ok=True)
    assert math.isnan(scored[1].miou)
    files = sorted(path.name for path in (tmp_path / "labelled").iterdir())
    assert files == sorted(f"{room.scene_id}.txt" for room in rooms)
    for name in files:
        assert (tmp_path / "bare" / name).read_bytes() == (tmp_path / "labelled" / name).read_bytes()


def test_other_names_of_the_classes_are_theirs():
    ids = scannet_ids(["refridgerator", "other furniture", "shower curtain"], objects=True)
    assert ids.tolist() == [24, 39, 28]


REFUSED = [
    (
        ("wall", "lamp"),
        "labels",
        ConfigError,
        r"'lamp': no class of ScanNet's benchmark, which has wall, floor.*or leave",
    ),
    (("chair", "wall"), "masks", ConfigError, r"'wall': no class of ScanNet's benchmark, which has cabinet, bed"),
    (("refrigerator", "refridgerator"), "labels", ConfigError, "two labels are ScanNet's class 'refrigerator'"),
    (("chair",), "boxes", ConfigError, "takes labels and masks, and this network finds boxes; leave --submission out"),
]


@pytest.mark.parametrize(("labels", "finds", "kind", "message"), REFUSED)
def test_what_the_benchmark_does_not_take_is_refused_and_nothing_is_left(tmp_path, labels, finds, kind, message):
    with pytest.raises(kind, match=message), write_submission(tmp_path / "new", labels, finds):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("scene_ids", "message"),
    [(("a b",), r"scene 'a b': a submission has a file"), (("../up",), "scene"), (("a", "a"), "scene 'a' comes twice")],
)
def test_a_scene_without_a_file_of_its_own_is_refused_and_no_half_is_left(tmp_path, scene_ids, message):
    def write() -> None:
        with write_submission(tmp_path / "new", LABELS, "labels") as submission:
            for scene_id in scene_ids:
                submission.add_labels(sample_key(scene_id, "whole"), np.array([0, 1]))

    with pytest.raises(DataError, match=message):
        write()
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_scoring_is_told_as_it_is_and_what_cannot_be_written_by_the_name_that_was_asked_for(tmp_path):
    with pytest.raises(ConnectionError), write_submission(tmp_path / "new", LABELS, "labels"):
        raise ConnectionError("the storage went away")
    asked = Path("/proc/new")  # where the kernel takes no folder
    message = r"^/proc/new: cannot be written \([^.]*'/proc/new'\); make room"
    with pytest.raises(ResultError, match=message), write_submission(asked, LABELS, "labels"):
        pass

    def write_over_a_folder() -> None:
        with write_submission(tmp_path / "new", LABELS, "labels") as submission:
            (partial,) = tmp_path.iterdir()
            (partial / "a.txt").mkdir()
            submission.add_labels(sample_key("a", "whole"), np.array([0, 1]))

    with pytest.raises(ResultError, match=r"new: cannot be written .*/new/a\.txt'\); make room"):
        write_over_a_folder()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_refused(tmp_path):
    with pytest.raises(CallError, match="exists already; name a new folder"):
        check_folder(tmp_path)
    with pytest.raises(CallError, match="is no folder; name a new one in a folder that exists"):
        check_folder(tmp_path / "no" / "new")
