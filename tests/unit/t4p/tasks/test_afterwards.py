"""What is said of a training when it is over; tests/integration/test_finetune.py makes the moves."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from made_dataset import blank_manifest, write_samples

from shards.packing.pack import pack
from shards.sample import members_of_sample
from shards.scene import Scene
from t4p.config.data import DataConfig, LabelledDataConfig
from t4p.config.network import ClipConfig, ModelConfig
from t4p.config.run import RunConfig, TrainConfig
from t4p.config.tasks import DetectionConfig, JobConfig, PretrainConfig, SemanticConfig
from t4p.runs.checkpoint import write_marker
from t4p.tasks.afterwards import evaluation_of, look_afterwards, next_commands, random_towers


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("rooms") / "frames")
    pack("synthetic", "seed=11,rooms=1,frames=1", folder)
    return folder


def pretraining(run_dir: Path, *validation: str, pretrained: str = "random") -> PretrainConfig:
    return PretrainConfig(
        run=RunConfig(dir=str(run_dir)),
        data=DataConfig(shards=("nowhere",), validation_shards=validation, pixel_stride=2),
        model=ModelConfig(labels=("wall", "chair"), clip=ClipConfig(pretrained=pretrained)),
        train=TrainConfig(num_steps=8),
    )


def make_checkpoint(run_dir: Path, step: int) -> Path:
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    write_marker(folder)
    return folder


def said(config: JobConfig, checkpoint: Path) -> list[list[str]]:
    return [shlex.split(command) for command in next_commands(config, checkpoint)]


def test_a_run_tells_its_folder_its_newest_whole_checkpoint_and_the_next_command(tmp_path: Path) -> None:
    run_dir = tmp_path / "a run"
    assert look_afterwards(pretraining(run_dir)) == (f"run folder: {run_dir}, without a whole checkpoint",)
    make_checkpoint(run_dir, 4)
    newest = make_checkpoint(run_dir, 8)
    (run_dir / "checkpoints" / "step_00000012").mkdir()
    exported = run_dir / "step_00000008.safetensors"
    assert look_afterwards(pretraining(run_dir)) == (
        "finished at step 8 of 8",
        f"  run folder: {run_dir}",
        f"  checkpoint: {newest}",
        f"  next: t4p checkpoint export '{newest}' '{exported}'",
    )


def test_where_validation_data_has_labels_of_the_run_it_is_scored_next(tmp_path: Path, rooms: str) -> None:
    newest, exported = make_checkpoint(tmp_path, 8), tmp_path / "step_00000008.safetensors"
    export = ["t4p", "checkpoint", "export", str(newest), str(exported)]
    evaluate = ["t4p", "evaluate", f"model.exported={exported}", f'data.shards=["{rooms}"]']
    config = pretraining(tmp_path, rooms)
    assert said(config, newest) == [export, [*evaluate, 'data.ignored_labels=["*"]', "data.pixel_stride=2"]]
    words = config.model.model_copy(update={"labels": ("spoon",)})
    assert said(config.model_copy(update={"model": words}), newest) == [export]
    tuned = SemanticConfig(
        run=config.run, data=LabelledDataConfig(shards=(rooms,), validation_shards=(rooms,), ignored_labels=("*",))
    )
    assert said(tuned, newest) == [export, [*evaluate, 'data.ignored_labels=["*"]']]
    exported.touch()
    assert said(tuned, newest) == [[*evaluate, 'data.ignored_labels=["*"]']]
    usual = f"t4p evaluate model.exported={exported} 'data.shards=[DST]'"
    assert evaluation_of(config, exported) == usual, "whatever is in DST"
    assert evaluation_of(tuned, exported) == f"{usual} 'data.ignored_labels=[\"*\"]'"


def test_boxes_alone_are_scored_next_where_they_are_learnt(tmp_path: Path) -> None:
    boxes, newest = str(tmp_path / "boxes"), make_checkpoint(tmp_path, 8)
    samples = [("room/whole", members_of_sample(Scene("made", "room", *np.zeros((2, 4, 3), np.float32), boxes=())))]
    write_samples(tmp_path / "boxes", samples, tmp_path / "scratch", blank_manifest("scenes", ()))
    run, data = RunConfig(dir=str(tmp_path)), LabelledDataConfig(shards=(boxes,), validation_shards=(boxes,))
    scored = {config: said(config(run=run, data=data), newest)[1:] for config in (DetectionConfig, SemanticConfig)}
    evaluate = ["t4p", "evaluate", f"model.exported={tmp_path / 'step_00000008.safetensors'}"]
    assert scored == {DetectionConfig: [[*evaluate, f'data.shards=["{boxes}"]']], SemanticConfig: []}


def test_validation_data_that_is_gone_does_not_spoil_the_end_of_a_run(tmp_path: Path) -> None:
    newest = make_checkpoint(tmp_path, 8)
    assert [command[1:3] for command in said(pretraining(tmp_path, str(tmp_path / "gone")), newest)] == [
        ["checkpoint", "export"]
    ]


def test_random_towers_are_told_in_one_line(tmp_path: Path) -> None:
    sentence = random_towers(pretraining(tmp_path))
    assert sentence is not None
    assert sentence.startswith("random towers: ")
    assert "\n" not in sentence
    assert random_towers(pretraining(tmp_path, pretrained="openai")) is None
