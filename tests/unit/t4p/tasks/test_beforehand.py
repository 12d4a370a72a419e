"""What is refused by a look at paths, manifests and the run folder, before torch is there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.errors import CallError, UserError
from t4p.config.files import load_config, load_config_of
from t4p.config.tasks import EvaluateConfig, FinetuneConfig
from t4p.errors import ConfigError
from t4p.runs.checkpoint import MARKER
from t4p.tasks.beforehand import look_before_evaluation, look_beforehand

OLDER = Path(__file__).resolve().parents[3] / "data" / "older"
FRAMES, SCENES = OLDER / "frames", OLDER / "scenes"
LABELS = "model.labels=[wall, floor, ceiling, chair]"


def pretrain(run_dir: Path, *overrides: str) -> None:
    look_beforehand(load_config(["configs/smoke.yaml"], [f"data.shards={FRAMES}", f"run.dir={run_dir}", *overrides]))


def finetune(run_dir: Path, *overrides: str) -> None:
    given = [f"data.shards={SCENES}", f"run.dir={run_dir}", "data.ignored_labels=['*']", LABELS, *overrides]
    given += ["train.global_batch_size=1"]
    look_beforehand(load_config_of(FinetuneConfig, ["configs/finetune/rooms.yaml"], given))


def test_what_can_work_passes(tmp_path: Path) -> None:
    pretrain(tmp_path / "new", f"data.validation_shards={FRAMES}")
    finetune(tmp_path / "new", f"model.pretrained={OLDER / 'pretrain.safetensors'}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("override", "status", "wanted"),
    [
        ("data.shards=/nowhere", 2, "/nowhere: no dataset here"),
        ("data.validation_shards=/nowhere", 2, "/nowhere: no dataset here"),
        (f"data.shards={SCENES}", 2, "holds scenes, and pre-training needs RGB-D frames"),
        ("train.global_batch_size=5", 2, "4 samples"),
        ("model.clip.name=configs/clip/none.json", 2, "configs/clip/none.json: no such file"),
        ("model.clip.pretrained=/nowhere/rn50.pt", 2, "and that file is not there; give the path of a weights file"),
        ("train.resume=/nowhere/step_00000010", 1, "no such checkpoint"),
    ],
)
def test_a_path_or_a_manifest_that_does_not_fit_is_refused(
    tmp_path: Path, override: str, status: int, wanted: str
) -> None:
    with pytest.raises(UserError) as caught:
        pretrain(tmp_path, override)
    assert wanted in str(caught.value)
    assert caught.value.exit_status == status


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("model.labels=[wall, sofas]", "no class 'sofas' of model.labels, did you mean 'sofa'?"),
        ("data.ignored_labels=[unlabelled]", "which are neither in model.labels nor in data.ignored_labels"),
        (
            "model.pretrained=/nowhere.safetensors",
            "model.pretrained is '/nowhere.safetensors', and",
        ),
        (f"model.pretrained={OLDER}", f"no {MARKER}, so it was not written to its end"),
    ],
)
def test_labels_and_a_beginning_that_are_not_there_are_refused(tmp_path: Path, override: str, wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        finetune(tmp_path, override)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("below", ["", "x/y"])
def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.dir .*file is a file, wanted a folder"):
        pretrain(tmp_path / "file" / below)


def test_a_run_that_goes_on_needs_no_beginning(tmp_path: Path) -> None:
    shutil.copytree(OLDER / "runs" / "pretrain" / "checkpoints", tmp_path / "checkpoints")
    finetune(tmp_path, "model.pretrained=/nowhere.safetensors")


def test_an_evaluation_needs_its_file_and_its_data(tmp_path: Path) -> None:
    def look(exported: Path, shards: Path) -> None:
        overrides = [f"model.exported={exported}", f"data.shards={shards}"]
        look_before_evaluation(load_config_of(EvaluateConfig, [], overrides))

    look(OLDER / "semantic.safetensors", SCENES)
    with pytest.raises(CallError, match="no dataset here"):
        look(OLDER / "semantic.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"model\.exported is .* and there is no such file; write one with"):
        look(tmp_path / "none", SCENES)
