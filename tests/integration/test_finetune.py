"""Pre-train, fine-tune with another label list, evaluate offline: the road after the shards, by command line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forks import run_python
from rank_processes import start_ranks

from shards.packing.pack import pack
from shards.reader import DatasetReader
from t4p.config.files import load_config_of
from t4p.config.tasks import SemanticConfig
from t4p.models.exported import load_exported_network
from t4p.runs.progress import last_in, parse_line

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_python")]

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "configs/finetune/rooms.yaml"
FEW_LABELS = "model.labels=[wall, floor, ceiling, chair]"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("rooms") / "frames")
    pack("synthetic", "seed=11,rooms=4,frames=3", folder, num_workers=2)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("scenes") / "scenes")
    pack("synthetic-scenes", "seed=11,rooms=2,frames=12", folder, num_workers=2)
    return folder


@pytest.fixture(scope="module")
def labels(rooms: str) -> tuple[str, ...]:
    """Every class of the rooms."""
    return tuple(name for name in DatasetReader(rooms).manifest.label_names if name != "unlabelled")


@pytest.fixture(scope="module")
def pretrained(rooms: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a pre-training of three steps, with four labels, and its export."""
    run_dir = tmp_path_factory.mktemp("pretrained")
    (export,) = next_commands(t4p(*pretraining(rooms, run_dir)))
    assert "Traceback" not in t4p(*export)
    (run_dir / "step_00000003.safetensors").rename(run_dir / "pretrained.safetensors")
    return run_dir


def pretraining(rooms: str, run_dir: Path) -> list[str]:
    """The command line."""
    return [
        "pretrain",
        "configs/pretrain/rooms.yaml",
        "data.num_workers=0",
        "train.global_batch_size=2",
        FEW_LABELS,
        "train.num_steps=3",
        "train.warmup_steps=1",
        "train.checkpoint_every=3",
        f"data.shards=[{rooms}]",
        f"run.dir={run_dir}",
    ]


def next_commands(output: str) -> list[list[str]]:
    """What the output of a training that is over tells to do next, without the name of the program."""
    found = [line.partition("next: t4p ")[2] for line in output.splitlines() if "next: t4p " in line]
    return [shlex.split(line) for line in found]


RUN_ALL = """
import json, sys
from t4p.config.tasks import SemanticConfig
from t4p.config.files import load_config_of
from t4p.tasks.semantic import run
outcomes = []
for overrides in json.loads(sys.argv[1]):
    try:
        run(load_config_of(SemanticConfig, ["configs/finetune/rooms.yaml"], overrides))
        outcomes.append(("none", ""))
    except Exception as error:
        outcomes.append((type(error).__name__, str(error)))
print("OUTCOMES" + json.dumps(outcomes))
"""


VOXELS_SEEN = """
import json, sys
from pathlib import Path
from t4p.train.engine import saved_weights
print(json.dumps([saved_weights(Path(checkpoint), 3)["voxels_seen"].tolist() for checkpoint in sys.argv[1:]]))
"""


def t4p(*arguments: str, status: int = 0) -> str:
    """Run the command; its output, of which errors are a part."""
    command = ["-m", "commands.main", *arguments]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "COLUMNS": "200"}
    if arguments[0] == "launch":  # a driver is a process among others of Ray: no fork
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=420
        )
    else:
        done = run_python(command, environment, timeout=420)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def python(script: str, *arguments: str) -> str:
    """Run a script; its output."""
    done = run_python(["-c", script, *arguments], timeout=420)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_four_rooms_are_learnt_by_heart_and_the_export_knows_them_without_clip(rooms, labels, tmp_path):
    run_dir = tmp_path / "run"
    output = t4p(
        "finetune",
        CONFIG,
        "data.num_workers=0",
        f"data.shards=[{rooms}]",
        f"data.validation_shards=[{rooms}]",
        "data.pixel_stride=3",
        "data.augment.rotation=false",
        "data.augment.mirror=false",
        "data.augment.scale=0",
        "model.point_features=[one, color, position]",  # whatever tells one place of these rooms from another
        "model.voxel_size=0.04",  # with 5 cm, voxels of two classes cost 2 points of mIoU; with 4 cm, 1
        f"run.dir={run_dir}",
        "train.learning_rate=8e-3",
        "train.warmup_steps=20",
        "train.num_steps=180",
        "train.checkpoint_every=180",
    )
    before, after = (json.loads(line) for line in (run_dir / "validation.jsonl").read_text().splitlines())
    assert before["miou"] < 0.1
    assert after["miou"] > 0.95, (output, after)

    last = last_in(output)
    assert last is not None
    assert (last.step, last.checkpoint) == (180, 180)
    assert list(last.losses) == ["loss", "loss_task", "loss_aux"]
    assert last.scores == {"miou": pytest.approx(after["miou"], abs=1e-4)}

    export, evaluate = next_commands(output)
    t4p(*export)
    scores = json.loads(t4p(*evaluate, "--json"))
    assert scores["task"] == "semantic"
    assert scores["miou"] == pytest.approx(after["miou"], abs=1e-6)
    assert scores["iou"].keys() == set(labels)
    assert f"report: {run_dir / 'report.html'}" in output
    assert json.loads((run_dir / "report.json").read_text())["scores"] == scores


def test_a_pre_training_with_four_labels_starts_a_fine_tuning_with_all(rooms, labels, pretrained, tmp_path):
    checkpoint = pretrained / "checkpoints" / "step_00000003"
    steps = ["train.num_steps=2", "train.warmup_steps=0", "train.checkpoint_every=2", "train.learning_rate=1e-6"]
    for start in (checkpoint, pretrained / "pretrained.safetensors"):
        run_dir = tmp_path / start.name
        t4p(
            "finetune",
            CONFIG,
            "data.num_workers=0",
            f"model.pretrained={start}",
            f"data.shards=[{rooms}]",
            f"run.dir={run_dir}",
            *steps,
        )
        exported = tmp_path / f"{start.name}.safetensors"
        told = t4p("checkpoint", "export", str(run_dir / "checkpoints" / "step_00000002"), str(exported))
        assert f"t4p.load({str(exported)!r})" in told
        before, after = (
            load_exported_network(path).net.state_dict() for path in (pretrained / "pretrained.safetensors", exported)
        )
        assert before.keys() == after.keys(), "not a weight is missing"
        for name, value in before.items():
            if value.is_floating_point() and not name.startswith("head.") and "running_" not in name:
                assert (after[name] - value).abs().max() < 1e-4, f"{name} began somewhere else"
        assert after["head.weight"].shape[0] == len(labels)


MOVED = """
import json, sys
from pathlib import Path
from t4p.config.files import load_for_command
from t4p.models.exported import load_exported_network
from t4p.tasks.semantic import run
from t4p.train.engine import saved_weights
before = load_exported_network(Path(sys.argv[1])).net.state_dict()
moved = []
for files, overrides in json.loads(sys.argv[2]):
    config = load_for_command("finetune", files, overrides)
    run(config)
    after = saved_weights(Path(config.run.dir) / "checkpoints/step_00000001", config.train.zero_stage)
    moved.append({
        name: float((after["net." + name].double() - value.double()).abs().max())
        for name, value in before.items() if not name.startswith("head.")
    })
print("MOVED" + json.dumps(moved))
"""


def test_a_linear_probe_moves_no_bit_of_the_network_and_layer_decay_slows_it_by_stages(rooms, pretrained, tmp_path):
    """Where no weight decays, the first step of AdamW moves the weights by the learning rate."""
    start = pretrained / "pretrained.safetensors"
    calls = []
    # Stage 3 last: DeepSpeed replaces torch's linear for good, by one that rounds differently.
    for stage, files, key in (
        (1, [CONFIG, "configs/finetune/linear_probe.yaml"], "train.weight_decay=0.5"),
        (1, [CONFIG], "train.layer_decay=0.5"),
        (3, [CONFIG, "configs/finetune/linear_probe.yaml"], "train.weight_decay=0.5"),
        (3, [CONFIG], "train.layer_decay=0.5"),
    ):
        common = ["data.num_workers=0", f"model.pretrained={start}", f"data.shards=[{rooms}]", "train.weight_decay=0"]
        steps = ["train.num_steps=1", "train.warmup_steps=0", "train.global_batch_size=2", f"train.zero_stage={stage}"]
        calls.append((files, [*common, *steps, key, f"run.dir={tmp_path / str(len(calls))}"]))
    moved = json.loads(python(MOVED, str(start), json.dumps(calls)).rpartition("MOVED")[2])
    (metrics,) = {(tmp_path / f"{run}" / "metrics.jsonl").read_text().count("\n") for run in range(4)}
    assert metrics == 1
    rate = json.loads((tmp_path / "1" / "metrics.jsonl").read_text())["learning_rate"]
    for of_run in (moved[0], moved[2]):
        assert set(of_run.values()) == {0.0}, "weights, statistics and counters of the probe"
    for of_run in (moved[1], moved[3]):
        for part, distance in (("unet.stem.", 6), ("unet.encoder.1", 4), ("reduce.", 3), ("unet.decoder.1.", 1)):
            of_part = max(
                value for name, value in of_run.items() if name.startswith(part) and name.endswith((".weight", ".bias"))
            )
            assert of_part == pytest.approx(rate * 0.5**distance, rel=0.02), part


EXPORT_SHARES = """
import sys
from pathlib import Path
from t4p.errors import CheckpointError
from t4p.tasks.export import export_checkpoint
checkpoint, folder, start = map(Path, sys.argv[1:])
for share in ("0", "1"):
    export_checkpoint(checkpoint, folder / f"{share}.safetensors", finetuned_share=float(share))
start.rename(start.with_name("moved"))
try:
    export_checkpoint(checkpoint, folder / "none.safetensors", finetuned_share=0.5)
except CheckpointError as error:
    print(error)
"""


def test_an_export_with_no_share_of_the_fine_tuning_is_zero_shot_and_half_of_it_half_way(rooms, pretrained, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(pretrained / "checkpoints" / "step_00000003", start)
    t4p(
        "finetune",
        CONFIG,
        "configs/finetune/few_labels.yaml",
        "data.num_workers=0",
        FEW_LABELS,
        "data.ignored_labels=['*']",
        f"model.pretrained={start}",
        "model.frozen=[encoder]",
        f"data.shards=[{rooms}]",
        f"run.dir={tmp_path / 'run'}",
        "train.num_steps=3",
        "train.warmup_steps=0",
        "train.checkpoint_every=3",
        "train.zero_stage=3",
    )
    checkpoint = str(tmp_path / "run" / "checkpoints" / "step_00000003")
    t4p("checkpoint", "export", checkpoint, str(tmp_path / "0.5.safetensors"), "--finetuned-share", "0.5")
    refused = python(EXPORT_SHARES, checkpoint, str(tmp_path), str(start))
    assert f"needs those that the run began with, model.pretrained={start}: " in refused
    networks = [load_exported_network(tmp_path / f"{share}.safetensors") for share in ("0", "0.5", "1")]
    none, _, whole = networks
    assert [network.finetuned_share for network in networks] == [0, 0.5, 1]
    exported_start = pretrained / "pretrained.safetensors"
    before = load_exported_network(exported_start)
    torch.testing.assert_close(none.label_embeddings, before.label_embeddings)
    assert (whole.label_embeddings - before.label_embeddings).abs().max() > 1e-3, "the prompts have learnt"
    weights = [network.net.state_dict() for network in networks]
    for name, value in before.net.state_dict().items():
        first, middle, last = (state[name] for state in weights)
        if not value.is_floating_point():
            assert torch.equal(middle, last)
            continue
        assert torch.equal(first, torch.zeros_like(first) if name.startswith("head.") else value), name
        torch.testing.assert_close(middle, (first + last) / 2)
    scored = [f"data.shards=[{rooms}]", "data.ignored_labels=['*']", "--json"]
    zero_shot, nothing_learnt = (
        json.loads(t4p("evaluate", f"model.exported={path}", *scored))
        for path in (exported_start, tmp_path / "0.safetensors")
    )
    assert nothing_learnt["iou"] == pytest.approx(zero_shot["iou"], abs=1e-3)


def test_a_run_that_is_over_tells_again_what_is_next(rooms, pretrained):
    output = t4p(*pretraining(rooms, pretrained), f"data.validation_shards=[{rooms}]")
    assert "every step is taken already" in output
    assert last_in(output) is None, "no step was taken"
    export, evaluate = next_commands(output)
    t4p(*export)
    assert json.loads(t4p(*evaluate, "--json"))["iou"].keys() == {"wall", "floor", "ceiling", "chair"}
    assert next_commands(t4p(*pretraining(rooms, pretrained))) == [
        ["checkpoint", "verify", str(pretrained / "checkpoints" / "step_00000003")]
    ], "the export is there"
    (pretrained / "step_00000003.safetensors").unlink()


def test_a_pre_training_is_scored_zero_shot_on_frames_and_scenes(rooms, scenes, pretrained):
    exported = f"model.exported={pretrained / 'pretrained.safetensors'}"
    for shards in (rooms, scenes):
        scores = json.loads(t4p("evaluate", exported, f"data.shards=[{shards}]", "data.ignored_labels=['*']", "--json"))
        assert scores["task"] == "pretrain"
        assert scores["iou"].keys() == {"wall", "floor", "ceiling", "chair"}
        assert 0 <= scores["miou"] <= 1
    table = t4p("evaluate", exported, f"data.shards=[{rooms}]", "data.ignored_labels=['*']")
    assert "Zero-shot" in table
    assert "chair" in table


@pytest.mark.ray
def test_two_workers_fine_tune_on_scenes_through_ray(scenes, labels, pretrained, tmp_path):
    run_dir = tmp_path / "run"
    output = t4p(
        "launch",
        "finetune",
        CONFIG,
        "data.num_workers=0",
        f"model.pretrained={pretrained / 'pretrained.safetensors'}",
        f"data.shards=[{scenes}]",
        f"data.validation_shards=[{scenes}]",
        f"run.dir={run_dir}",
        "train.num_steps=4",
        "train.warmup_steps=0",
        "train.global_batch_size=2",
        "train.checkpoint_every=4",
        "--workers",
        "2",
    )
    losses = [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    # A slow machine has lines between them, too.
    first, *_, last = (line for line in map(parse_line, output.splitlines()) if line is not None)
    assert (first.step, last.step, last.checkpoint, list(last.scores)) == (1, 4, 4, ["miou"])
    assert last.losses["loss"] == pytest.approx(losses[-1], rel=1e-4)
    logged = last_in((run_dir / "logs" / "rank-0.log").read_text())
    assert logged is not None
    assert logged.is_last, "the same lines in the log of rank 0"
    assert next_commands(output)[0][:2] == ["checkpoint", "export"]
    assert "What is taken for what" in (run_dir / "report.html").read_text(), "the launch leaves a report, too"
    assert load_config_of(SemanticConfig, [run_dir / "config.yaml"]).model.labels == labels


def test_a_fine_tuning_goes_on_with_another_number_of_ranks_and_without_the_weights_it_began_from(
    rooms, pretrained, tmp_path
):
    """With four labels the bias of the head alone would leave a rank of three without a share of its group."""
    start = tmp_path / "start.safetensors"
    shutil.copy(pretrained / "pretrained.safetensors", start)
    # Stage 3 last: DeepSpeed replaces torch's linear for good, by one that rounds differently.
    keys = {
        1: ["model.head=linear", "train.layer_decay=0.6"],
        2: ["model.head=words", "model.frozen=[encoder]"],
        3: ["model.head=words", "model.frozen=[encoder]", "train.layer_decay=0.6"],
    }

    def call(stage: int, run_dir: Path) -> list[str]:
        return [
            "data.num_workers=0",
            f"data.shards=[{rooms}]",
            FEW_LABELS,
            "data.ignored_labels=['*']",
            f"model.pretrained={start}",
            f"run.dir={run_dir}",
            "train.num_steps=4",
            "train.warmup_steps=0",
            "train.global_batch_size=3",
            "train.checkpoint_every=2",
            f"train.zero_stage={stage}",
            *keys[stage],
        ]

    def run_on(num_ranks: int, calls: list[list[str]]) -> None:
        with start_ranks(
            [sys.executable, "-c", RUN_ALL, json.dumps(calls)], num_ranks, tmp_path / f"{num_ranks}"
        ) as ranks:
            ranks.wait(400)
            assert ranks.said().count(json.dumps([["none", ""]] * len(calls))) == num_ranks, ranks.said()

    run_on(2, [call(stage, tmp_path / f"whole-{stage}") for stage in keys])
    for stage in keys:
        shutil.copytree(tmp_path / f"whole-{stage}", tmp_path / f"moved-{stage}")
        shutil.rmtree(tmp_path / f"moved-{stage}" / "checkpoints" / "step_00000004")
    start.unlink()
    run_on(3, [call(stage, tmp_path / f"moved-{stage}") for stage in keys])
    for stage in keys:
        whole, moved = (
            [json.loads(line) for line in (tmp_path / f"{name}-{stage}" / "metrics.jsonl").read_text().splitlines()]
            for name in ("whole", "moved")
        )
        assert [line["step"] for line in moved] == [1, 2, 3, 4]
        for before, after in zip(whole, moved, strict=True):
            assert after["loss"] == pytest.approx(before["loss"], rel=1e-4), f"stage {stage}, step {before['step']}"
    last = [str(tmp_path / f"{name}-3" / "checkpoints" / "step_00000004") for name in ("whole", "moved")]
    whole_seen, moved_seen = json.loads(python(VOXELS_SEEN, *last))
    assert whole_seen == moved_seen, "the labels that were seen before went along"
    assert whole_seen[0] > whole_seen[3] > 0, "walls and chairs"


REFUSALS = [
    (["model.labels=[wall, floor]"], "ConfigError", "which are neither in model.labels nor in data.ignored_labels"),
    (
        ["model.labels=[wall, flor]", "data.ignored_labels=['*']"],
        "ConfigError",
        "no class 'flor' of model.labels, did you mean 'floor'?",
    ),
    (["data.shards=[/nowhere]"], "CallError", "/nowhere"),
    (["model.pretrained=/nowhere.safetensors"], "CheckpointError", "/nowhere.safetensors: cannot be read"),
    (
        ["model.unet.encoder_channels=[48, 64]", "model.pretrained={start}"],
        "ConfigError",
        "model.unet.encoder_channels",
    ),
    (
        ["model.clip.name=configs/clip/tiny-rn.json", "model.clip.pretrained=random", "model.pretrained={start}"],
        "ConfigError",
        "name the same model.clip",
    ),
    (["model.prompt_tokens=40"], "ClipError", "shorten the label or the template"),
    (["data.image_size=[96, 128]"], "ConfigError", "data.image_size: unknown key"),
]


def test_calls_that_cannot_work_are_refused(rooms, pretrained, tmp_path):
    """In one process, to pay for its imports once."""
    start = pretrained / "pretrained.safetensors"
    common = [
        "data.num_workers=0",
        f"data.shards=[{rooms}]",
        f"run.dir={tmp_path / 'run'}",
        "train.num_steps=1",
        "train.warmup_steps=0",
    ]
    calls = [[*common, *(override.format(start=start) for override in overrides)] for overrides, _, _ in REFUSALS]
    output = python(RUN_ALL, json.dumps(calls))
    outcomes = json.loads(output.rpartition("OUTCOMES")[2])
    for (_, kind, message), (found_kind, found_message) in zip(REFUSALS, outcomes, strict=True):
        assert found_kind == kind, found_message
        assert message in found_message
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"], "nothing else was written"


def test_pre_training_on_scenes_is_refused_by_name(scenes, tmp_path):
    output = t4p("pretrain", "configs/smoke.yaml", f"data.shards=[{scenes}]", f"run.dir={tmp_path}", status=2)
    assert "holds scenes, and pre-training needs RGB-D frames" in output.replace("\n", " ")
