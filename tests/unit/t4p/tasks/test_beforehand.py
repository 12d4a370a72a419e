"""What is refused by a look at paths, manifests and the run folder, before torch is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from made_dataset import blank_manifest, write_samples

from shards.errors import UserError
from shards.reader import DatasetReader
from shards.sample import members_of_sample
from t4p.config.files import load_config, load_config_of, load_for_command
from t4p.config.tasks import EvaluateConfig, SemanticConfig
from t4p.errors import ConfigError, RunError
from t4p.tasks.beforehand import look_before_evaluation, look_beforehand

OLDER = Path(__file__).resolve().parents[3] / "data" / "older"
FRAMES, SCENES = OLDER / "frames", OLDER / "scenes"
LABELS = "model.labels=[wall, floor, ceiling, chair]"


def pretrain(run_dir: Path, *overrides: str) -> None:
    look_beforehand(load_config(["configs/smoke.yaml"], [f"data.shards={FRAMES}", f"run.dir={run_dir}", *overrides]))


def finetune(run_dir: Path, *overrides: str) -> None:
    given = [f"data.shards={SCENES}", f"run.dir={run_dir}", "data.ignored_labels=['*']", LABELS]
    given += ["train.global_batch_size=1", *overrides]
    look_beforehand(load_config_of(SemanticConfig, ["configs/finetune/rooms.yaml"], given))


def test_what_can_work_passes(tmp_path: Path) -> None:
    pretrain(tmp_path / "new", f"data.validation_shards={FRAMES}")
    finetune(tmp_path / "new", f"model.pretrained={OLDER / 'pretrain.safetensors'}")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("data.shards=/nowhere", "data.shards: /nowhere: no dataset here"),
        ("data.validation_shards=/nowhere", "data.validation_shards: /nowhere: no dataset here"),
        (f"data.shards={SCENES}", "holds scenes, and pre-training needs RGB-D frames"),
        ("train.global_batch_size=5", "train.global_batch_size: the dataset has 4 samples"),
        ("model.clip.name=configs/clip/none.json", "model.clip: configs/clip/none.json: no such file"),
        ("model.clip.pretrained=/nowhere/rn50.pt", "and that file is not there; give the path of a weights file"),
        ("train.resume=/nowhere/step_00000010", "train.resume: /nowhere/step_00000010: no such checkpoint; name a run"),
        (f"train.resume={OLDER}", "neither a checkpoint nor a run folder; name a run folder, or one of"),
    ],
)
def test_a_path_or_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, override: str, wanted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pretrain(tmp_path, override)
    assert wanted in str(caught.value)
    assert caught.value.exit_status == 2


def test_all_paths_that_are_not_there_are_told_at_once_each_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    overrides = [
        *("data.shards=[/nowhere/a, /nowhere/b]", "data.validation_shards=/nowhere/c", "train.resume=/nowhere/d"),
        "model.clip.pretrained=/nowhere/e.pt",
    ]
    with pytest.raises(ConfigError) as caught:
        pretrain(tmp_path / "file", *overrides)
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 problem(s) in the configuration"
    keys = ("run.dir", "train.resume", "data.shards", "", "data.validation_shards", "model.clip")
    for line, key in zip(lines[1:], keys, strict=True):
        assert line.startswith(f"  {key}")
    assert all(f"/nowhere/{name}" in str(caught.value) for name in "abcde")


def test_a_folder_that_another_run_is_in_is_no_wrong_call(tmp_path: Path) -> None:
    script = (
        "import sys, fcntl; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(RunError, match="another run is in it"):
            pretrain(tmp_path)
        with pytest.raises(
            ConfigError, match=r"2 problem\(s\).*\n  run\.dir .*another run is in it.*\n  data\.shards: "
        ):
            pretrain(tmp_path, "data.shards=/nowhere")
        other.communicate(b"\n")


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("model.labels=[wall, sofas]", "no class 'sofas' of model.labels, did you mean 'sofa'?"),
        ("data.ignored_labels=[unlabelled]", "which are neither in model.labels nor in data.ignored_labels"),
        (
            "model.pretrained=/nowhere.safetensors",
            "model.pretrained is '/nowhere.safetensors', and",
        ),
        (f"model.pretrained={OLDER}", f"{OLDER}: neither a checkpoint nor a run folder"),
    ],
)
def test_labels_and_a_beginning_that_are_not_there_are_refused(tmp_path: Path, override: str, wanted: str) -> None:
    with pytest.raises(UserError) as caught:
        finetune(tmp_path, override)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            [f"data.shards={FRAMES}", "data.labels_per_scene=20"],
            "data.shards: .*holds frames, and data.labels_per_scene",
        ),
        (
            ["data.label_fraction=0.3", "train.global_batch_size=2"],
            r"train.global_batch_size: the dataset has 1 samples, .*\(data.label_fraction is 0.3\)",
        ),
    ],
)
def test_few_labels_that_cannot_be_had_are_refused(tmp_path: Path, overrides: list[str], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        finetune(tmp_path, *overrides)


@pytest.mark.parametrize("below", ["", "x/y"])
def test_a_run_folder_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.dir .*file is a file, wanted a folder"):
        pretrain(tmp_path / "file" / below)


def test_a_run_folder_stands_for_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    finetune(tmp_path, f"model.pretrained={OLDER / 'runs' / 'pretrain'}")
    pretrain(tmp_path, f"train.resume={OLDER / 'runs' / 'pretrain'}")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(
        ConfigError, match=r"train\.resume: .*empty: a run folder without a whole checkpoint; name another"
    ):
        pretrain(tmp_path, f"train.resume={tmp_path / 'empty'}")


def test_a_run_that_goes_on_needs_no_beginning(tmp_path: Path) -> None:
    shutil.copytree(OLDER / "runs" / "pretrain" / "checkpoints", tmp_path / "checkpoints")
    finetune(tmp_path, "model.pretrained=/nowhere.safetensors")


def test_an_evaluation_needs_its_file_and_its_data(tmp_path: Path) -> None:
    def look(exported: Path, shards: Path) -> None:
        overrides = [f"model.exported={exported}", f"data.shards={shards}"]
        look_before_evaluation(load_config_of(EvaluateConfig, [], overrides))

    look(OLDER / "semantic.safetensors", SCENES)
    with pytest.raises(ConfigError, match=r"data\.shards: .*no dataset here"):
        look(OLDER / "semantic.safetensors", tmp_path)
    run = OLDER / "runs" / "pretrain"
    with pytest.raises(ConfigError, match=rf"model\.exported is .*, a folder.*`t4p checkpoint export {run} FILE`"):
        look(run, SCENES)
    missing = r"model\.exported is .* and there is no such file; write one with"
    with pytest.raises(ConfigError, match=missing):
        look(tmp_path / "none", SCENES)
    with pytest.raises(ConfigError, match=rf"2 problem\(s\) in the configuration\n  {missing}.*\n  data\.shards: "):
        look(tmp_path / "none", tmp_path)


def objects(run_dir: Path, task: str, shards: Path, *overrides: str) -> None:
    files = ["configs/finetune/rooms.yaml", f"configs/finetune/rooms_{task}.yaml"]
    given = [f"data.shards={shards}", f"run.dir={run_dir}", "model.labels=[chair]", "train.global_batch_size=1"]
    look_beforehand(load_for_command("finetune", files, [*given, *overrides]))


def repacked(folder: Path, label_names: tuple[str, ...], *without: str) -> Path:
    """The scenes again, without arrays or boxes of these names."""
    reader = DatasetReader(str(SCENES))
    samples = [
        (reader.key(0, row), members_of_sample(replace(reader.read_scene(0, row), **dict.fromkeys(without))))
        for row in range(int(reader.samples_per_shard[0]))
    ]
    write_samples(folder, samples, folder.with_name("scratch"), blank_manifest("scenes", label_names))
    return folder


def test_what_every_sample_lacks_is_said_before_the_first_of_them_is_trained_on(tmp_path: Path) -> None:
    names = DatasetReader(str(SCENES)).manifest.label_names
    no_ids = repacked(tmp_path / "no-ids", names, "instance")
    boxes_alone = repacked(tmp_path / "boxes-alone", (), "instance", "semantic")
    nothing = repacked(tmp_path / "nothing", names, "instance", "semantic", "boxes")
    run_dir = tmp_path / "run"
    for task in ("instance", "detection"):
        objects(run_dir, task, SCENES)
    objects(run_dir, "detection", no_ids)
    for boxes in ("axis_aligned", "oriented"):
        objects(run_dir, "detection", boxes_alone, f"model.boxes={boxes}")
    refused = [
        (("instance", no_ids), r"no-ids: what was looked at \(.*/whole\) has no instance ids, from which .*pack it"),
        (("instance", SCENES, "model.groups=given"), r"has no over-segmentation .*set model\.groups=own"),
        (("instance", boxes_alone), r"has no class labels"),
        (("instance", nothing), r"nothing: what was looked at \(.*/whole\) has no semantic labels; pack it"),
        (("detection", nothing), r"has neither boxes nor instance ids with their labels.*pack it"),
        (("detection", nothing, "model.boxes=oriented"), r"has no boxes, and model\.boxes is oriented"),
        (("detection", SCENES, f"data.validation_shards={nothing}"), r"data\.validation_shards: .*has neither boxes"),
    ]
    for (task, shards, *overrides), message in refused:
        with pytest.raises(ConfigError, match=message):
            objects(run_dir, task, shards, *overrides)
    objects(run_dir, "instance", SCENES, "model.groups=given", "model.masks=votes")
    with pytest.raises(ConfigError, match="has no semantic labels"):
        finetune(run_dir, f"data.shards={nothing}")


def test_misspelt_labels_of_boxes_alone_are_refused_and_a_mixture_is_checked_by_what_is_known(tmp_path: Path) -> None:
    boxes_alone = repacked(tmp_path / "boxes-alone", (), "instance", "semantic")
    run_dir = tmp_path / "run"
    kept = "data.ignored_labels=['*']"
    other = r"boxes-alone: no box that was looked at is of 'chiar' \(model\.labels\); their labels are '.*'chair'"
    for boxes in ("axis_aligned", "oriented"):
        with pytest.raises(ConfigError, match=other):
            objects(run_dir, "detection", boxes_alone, "model.labels=[chiar]", f"model.boxes={boxes}")
    with pytest.raises(ConfigError, match=r"scenes: no box that was looked at is of 'wall'"):
        objects(run_dir, "detection", SCENES, "model.labels=[wall]", "model.boxes=oriented", kept)
    both = f"data.shards=[{SCENES}, {boxes_alone}]"
    objects(run_dir, "detection", SCENES, both, kept)
    with pytest.raises(ConfigError, match=r"no class 'chiar' of model\.labels, did you mean 'chair'\?"):
        objects(run_dir, "detection", SCENES, both, kept, "model.labels=[chair, chiar]")
