"""Instance segmentation and detection by command line: learnt by heart, exported, scored, resumed, on several ranks."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from forks import run_python
from made_dataset import blank_manifest, write_samples
from rank_processes import start_ranks
from read_submission import read_masks

import t4p
from commands.pages.scored_scene import match_objects
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.sample import members_of_sample
from t4p.config.data import EvaluatedDataConfig
from t4p.data.boxes import points_inside
from t4p.metrics.instance import InstanceScene, evaluate
from t4p.metrics.scannet import SCANNET_IDS
from t4p.models.exported import load_exported_network
from t4p.tasks.evaluate import score_exported
from t4p.tasks.scored import ScoredSample

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_python")]

FILES = {
    "instance": ["configs/finetune/rooms.yaml", "configs/finetune/rooms_instance.yaml"],
    "detection": ["configs/finetune/rooms.yaml", "configs/finetune/rooms_detection.yaml"],
}
AS_RECORDED = ["data.augment.rotation=false", "data.augment.mirror=false", "data.augment.scale=0"]
# Whatever tells one place of these rooms from another.
BY_HEART = [
    *AS_RECORDED,
    *("model.point_features=[one, color, position]", "model.voxel_size=0.08"),
    *("train.learning_rate=4e-3", "train.warmup_steps=5", "data.num_workers=0"),
]

RUN_ALL = """
import json, sys
from t4p.config.files import load_for_command
from t4p.config.kinds import task_named

class Stopped(Exception):
    pass

def stopping_at(step):
    def on_step(record):
        if record.step == step:
            raise Stopped
    return on_step

for files, overrides, last in json.loads(sys.argv[1]):
    config = load_for_command("finetune", files, overrides)
    try:
        task_named(config.task).load().run(config, on_step=stopping_at(last))
    except Stopped:
        pass
"""


def pack_scenes(folder: Path, num_rooms: int) -> str:
    pack("synthetic-scenes", f"seed=11,rooms={num_rooms},frames=12", str(folder), num_workers=2)
    return str(folder)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One scene."""
    return pack_scenes(tmp_path_factory.mktemp("room") / "scenes", 1)


def command(*arguments: str) -> str:
    """Run `t4p`; its output."""
    done = run_python(["-m", "commands.main", *arguments], os.environ | {"DS_ACCELERATOR": "cpu"}, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def learn(
    task: str, scenes: str, run_dir: Path, num_steps: int, *overrides: str, through_ray: bool = False
) -> dict[str, float]:
    """Train, export and score: what `t4p evaluate` says of the means, which are those of the last validation."""
    finetune = ["launch", "finetune", "--workers", "1"] if through_ray else ["finetune"]
    command(
        *(*finetune, *FILES[task], *BY_HEART, *overrides),
        *(f"data.shards=[{scenes}]", f"data.validation_shards=[{scenes}]", f"run.dir={run_dir}"),
        *(f"train.num_steps={num_steps}", f"train.checkpoint_every={num_steps}"),
    )
    *_, after = (json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines())
    exported = run_dir / "exported.safetensors"
    command("checkpoint", "export", str(run_dir), str(exported))
    scored = [
        f"model.exported={exported}",
        f"data.shards=[{scenes}]",
        "data.ignored_labels=['*']",
        "data.num_workers=0",
    ]
    scores = json.loads(command("evaluate", *scored, "--json"))
    assert scores["task"] == task
    for name, value in scores["mean"].items():
        assert after[name] == pytest.approx(value, abs=1e-6) if name in after else name.startswith("ar")
    assert "mean" in command("evaluate", *scored)
    report = json.loads((run_dir / "report.json").read_text())
    assert report["scores"]["mean"] == pytest.approx(scores["mean"], abs=1e-6)
    assert report["losses"]["loss"]["last"] < report["losses"]["loss"]["first"]
    page = (run_dir / "report.html").read_text()
    assert "Parts of loss_task" in page
    assert re.findall("<h2>The (.*): ", page) in (["only one"], ["best", "worst"])
    return scores["mean"]


def look(model: Path, scenes: str) -> ScoredSample:
    """What is told of the one sample of a dataset when a network is scored on it."""
    seen: list[ScoredSample] = []
    data = EvaluatedDataConfig(shards=(scenes,), ignored_labels=("*",), num_workers=0)
    sheet = score_exported(load_exported_network(model), data, on_sample=seen.append)
    (sample,) = seen
    assert sheet.means[sheet.columns.index(sample.measure)] == sample.score, "one sample is the whole"
    return sample


def test_one_room_is_learnt_by_heart_and_its_objects_are_found_by_the_export(room, tmp_path):
    scene = DatasetReader(room).read_scene(0, 0)
    assert learn("detection", room, tmp_path / "boxes", 40, "train.global_batch_size=1", through_ray=True)["ap25"] > 0.9
    command("predict", str(tmp_path / "boxes" / "exported.safetensors"), f"{room}", "--out", str(tmp_path / "said"))
    objects = json.loads((tmp_path / "said" / "objects.json").read_text())["objects"]
    assert {one["label"] for one in objects} <= set(t4p.load(tmp_path / "boxes" / "exported.safetensors").labels)
    assert objects
    boxes, label_ids, scores = t4p.load(tmp_path / "boxes" / "exported.safetensors").detect(scene.points, scene.rgb)
    looked = look(tmp_path / "boxes" / "exported.safetensors", room)
    true, found = looked.truth, looked.predicted
    assert all(points_inside(looked.points, box + [0, 0, 0, 0.1, 0.1, 0.1, 0]).any() for box in true.boxes)
    assert np.isin(np.arange(len(true.boxes)), match_objects(true, found[found.scores > 0.25])).mean() > 0.9
    best = boxes[np.argmax(scores)]
    near = np.abs(scene.points - best[:3]).max(1) < best[3:6].max() / 2
    assert near.sum() > 100, "the box lies in the room where its points are"
    assert len(boxes) == len(label_ids)

    # Those of its classes that ScanNet has, for a submission.
    labels = ("chair", "table", "bookshelf", "bathtub")
    keys = [f"model.labels=[{', '.join(labels)}]", "train.global_batch_size=1"]
    scores_of_masks = learn("instance", room, tmp_path / "masks", 110, *keys)
    assert scores_of_masks["ap50"] > 0.9
    masks, label_ids, scores = t4p.load(tmp_path / "masks" / "exported.safetensors").segment_instances(
        scene.points, scene.rgb
    )
    assert masks.shape == (len(label_ids), len(scene.points))
    looked = look(tmp_path / "masks" / "exported.safetensors", room)
    true, found = looked.truth, looked.predicted
    assert true.masks.sum(axis=0).max() == 1, "a voxel is of one true object"
    for mask, box in zip(true.masks, true.boxes, strict=True):
        assert points_inside(looked.points[mask], box + [0, 0, 0, 1e-3, 1e-3, 1e-3, 0]).all()
    assert np.isin(np.arange(len(true.boxes)), match_objects(true, found[found.scores > 0.25])).mean() > 0.9
    of_best = scene.instance[masks[np.argmax(scores)]]
    assert (of_best == np.bincount(of_best).argmax()).mean() > 0.9

    submitted = submit(tmp_path / "masks" / "exported.safetensors", room, tmp_path / "submitted")
    names = DatasetReader(room).manifest.label_names
    ids_of_names = np.array([SCANNET_IDS[name] if name in labels else 0 for name in names])
    found_masks = read_masks(submitted / f"{scene.scene_id}.txt")
    truth = (ids_of_names[scene.semantic], scene.instance.astype(np.int64))
    read_back = evaluate([InstanceScene(*truth, *found_masks)], [SCANNET_IDS[label] for label in labels])
    assert read_back.mean_ap == scores_of_masks["ap"]
    assert read_back.mean_ap50 == scores_of_masks["ap50"]
    # A test split: the same scene, of which nothing is known.
    bare = replace(scene, semantic=None, instance=None, boxes=None, segments=None)
    key = DatasetReader(room).key(0, 0)
    write_samples(tmp_path / "bare", [(key, members_of_sample(bare))], tmp_path / "scratch", blank_manifest("scenes"))
    blind = submit(tmp_path / "masks" / "exported.safetensors", str(tmp_path / "bare"), tmp_path / "blind")
    for file in (path for path in submitted.rglob("*") if path.is_file()):
        assert (blind / file.relative_to(submitted)).read_bytes() == file.read_bytes()


def submit(exported: Path, scenes: str, folder: Path) -> Path:
    """Write predictions in ScanNet's layout."""
    given = [f"model.exported={exported}", f"data.shards=[{scenes}]", "data.ignored_labels=['*']", "data.num_workers=0"]
    command("evaluate", *given, "--submission", str(folder))
    return folder


@pytest.mark.soak
@pytest.mark.parametrize(("task", "score", "wanted"), [("instance", "ap50", 0.9), ("detection", "ap25", 0.9)])
def test_four_rooms_are_learnt_by_heart(tmp_path, task, score, wanted):
    scenes = pack_scenes(tmp_path / "scenes", 4)
    assert learn(task, scenes, tmp_path / "run", 250)[score] > wanted


def test_both_tasks_go_on_bit_for_bit_on_two_ranks_under_zero_1_and_3(tmp_path):
    scenes = pack_scenes(tmp_path / "scenes", 2)
    runs = []
    for stage in (1, 3):  # 3 last: DeepSpeed replaces torch's linear for good, by one that rounds differently
        for task in FILES:
            given = [
                *(f"data.shards=[{scenes}]", "data.num_workers=0", "train.global_batch_size=2"),
                *("train.num_steps=4", "train.warmup_steps=1", "train.checkpoint_every=2"),
                *(f"train.zero_stage={stage}", "model.voxel_size=0.12"),
                *("data.augment.mix=0.5", "data.augment.position_jitter=0.005"),
                *(["data.augment.elastic=0.5"] if task == "instance" else []),
            ]
            whole, stopped = (f"run.dir={tmp_path / f'{task}-{stage}-{name}'}" for name in ("whole", "stopped"))
            runs += [(FILES[task], [*given, whole], None)]
            runs += [(FILES[task], [*given, stopped], last) for last in (3, None)]
    script = tmp_path / "runs.py"
    script.write_text(RUN_ALL)
    with start_ranks([sys.executable, str(script), json.dumps(runs)], 2, tmp_path / "logs") as ranks:
        ranks.wait(400)
    for stage in (1, 3):
        for task in FILES:
            whole, stopped = (
                [
                    json.loads(line)
                    for line in (tmp_path / f"{task}-{stage}-{name}/metrics.jsonl").read_text().splitlines()
                ]
                for name in ("whole", "stopped")
            )
            assert [line["step"] for line in stopped] == [1, 2, 3, 4]
            terms = [name for name in whole[0] if name.startswith("loss") or name == "gradient_norm"]
            for first, second in zip(whole, stopped, strict=True):
                assert {name: first[name] for name in terms} == {name: second[name] for name in terms}
