"""What a plan says of the passes of a fine-tuning, made with zeros on one sample, against real ones on two."""

from __future__ import annotations

import json
import re

import pytest
import torch
from small_model import TINY_NETWORK
from typer.testing import CliRunner

from commands.main import app
from shards.packing.pack import pack
from t4p.config.files import load_for_command
from t4p.config.kinds import task_named
from t4p.config.tasks import FinetuneConfig
from t4p.data.fetch import Catalogue
from t4p.data.few_labels import training_catalogue
from t4p.models.sparse.native_functions import widest_turns_only
from t4p.models.towers import load_towers_from
from t4p.plan.finetuning import look_at_samples, measure_finetuning
from t4p.plan.job import with_checkpointing
from t4p.plan.live_memory import LiveMemory

ROOMS = "configs/finetune/rooms.yaml"
FILES = {
    "semantic": [ROOMS],
    "instance": [ROOMS, "configs/finetune/rooms_instance.yaml"],
    "detection": [ROOMS, "configs/finetune/rooms_detection.yaml"],
    "probe": [ROOMS, "configs/finetune/linear_probe.yaml"],
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("scenes") / "scenes")
    pack("synthetic-scenes", "seed=11,rooms=1,frames=6", folder)
    return folder


def overrides(scenes: str, *given: str) -> list[str]:
    labels = ["model.labels=[chair, table, bookshelf, bathtub]", "data.ignored_labels=['*']"]
    augment = ["data.augment.rotation=false", "data.augment.scale=0"]
    return [f"data.shards={json.dumps([scenes])}", "run.dir=unused", *labels, *augment, *TINY_NETWORK, *given]


@pytest.mark.parametrize("name", FILES)
def test_passes_hold_what_was_planned(scenes, name):
    """Over two samples: what one adds to none, twice."""
    pretrained = ["model.pretrained=unread"] if name == "probe" else []
    loaded = load_for_command("finetune", FILES[name], overrides(scenes, *pretrained))
    assert isinstance(loaded, FinetuneConfig)
    config = with_checkpointing(loaded, False)
    task = task_named(config.task).load()
    catalogue = Catalogue(config.data.urls)
    recipe = task.build_recipe(config, catalogue, True)
    sample = recipe.make(catalogue.fetch(0, 0), 0, catalogue.key(0, 0), 0)
    planned = measure_finetuning(config, recipe.join([]), recipe.join([sample])).of_frames(2)

    module = task.build_module(config, load_towers_from(config.model.clip, 0)).train()
    inputs_of = task.build_task(config, torch.device("cpu"), None).inputs
    with widest_turns_only(), LiveMemory() as live:
        module(*inputs_of(recipe.join([sample, sample])))[0].backward()
    everything = live.timeline()
    gradients = live.timeline(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
    print(f"{name}: planned {planned.activations / 1e6:.2f} MB, seen {(everything - gradients).max() / 1e6:.2f} MB")
    assert planned.activations == pytest.approx((everything - gradients).max(), rel=0.05)


@pytest.mark.parametrize("name", ["instance", "probe"])
def test_the_command_answers_for_every_task(scenes, name):
    given = overrides(scenes, "train.global_batch_size=1", "train.layer_decay=0.8", "model.pretrained=unread")
    answered = CliRunner().invoke(app, ["plan", *FILES[name], *given, "--json"])
    assert answered.exit_code == 0, answered.output
    plan = json.loads(answered.output)
    assert plan["loss_e"] is plan["loss_d"] is None
    assert plan["frames"]["num_samples"] == 1
    assert all(stage["memory"]["peak"] > plan["micro_batch"]["forward"] > 0 for stage in plan["stages"])
    assert (plan["num_parameters"] < 1000) == (name == "probe"), "of a probe the head alone"


def test_its_table_has_no_row_of_a_pre_training_and_counts_samples(scenes):
    given = ["train.global_batch_size=1", "data.num_workers=0", "--hours", "1000"]
    table = CliRunner().invoke(app, ["plan", ROOMS, *overrides(scenes, *given)])
    assert "ZeRO-1: a worker holds" in table.output
    assert table.output.startswith(
        "1 worker on the CPU (1 node x 1), 1 sample in 1 micro-batch: 1 sample per rank at a time\n"
    )
    assert "0.0 in all, 0.0 per rank" in table.output
    for absent in ("pairs", "frame", "hold this run up"):
        assert absent not in table.output
    hurried = CliRunner().invoke(app, ["plan", ROOMS, *overrides(scenes, *given[:2]), "--hours", "0.01"])
    (busy,) = re.findall(r"([\d.]+) in all, [\d.]+ per rank\s+data", hurried.output)
    (advised,) = re.findall(r"set data\.num_workers to (\d+) or more", hurried.output)
    assert 0.05 <= float(busy) - 0.05 <= int(advised) <= float(busy) + 1.05


def test_samples_are_those_that_are_trained_on_and_mixed_ones_are_two(tmp_path):
    folder = str(tmp_path / "shards")
    pack("synthetic-scenes", "seed=3,rooms=4,frames=3,width=48,height=36", folder)

    def look(*given):
        config = load_for_command("finetune", [ROOMS], overrides(folder, *given))
        catalogue = training_catalogue(config.data, config.run.seed)
        return look_at_samples(config, catalogue), catalogue

    whole, catalogue = look()
    part, of_part = look("data.label_fraction=0.5")
    mixed, _ = look("data.augment.mix=0.5")
    assert (whole.num_samples, part.num_samples) == (4, 2)
    assert part.source == "2 of the 2 samples of data.shards"
    assert part.stored_bytes == of_part.bytes_per_shard.sum() / 2
    assert mixed.stored_bytes == pytest.approx(1.5 * whole.stored_bytes)
    assert whole.stored_bytes == catalogue.bytes_per_shard.sum() / 4
    assert whole.largest_voxels < mixed.largest_voxels < 2.1 * whole.largest_voxels
    assert 1.2 < mixed.mean_voxels / whole.mean_voxels < 1.55
    planned = CliRunner().invoke(
        app, ["plan", ROOMS, *overrides(folder, "data.label_fraction=0.5", "train.global_batch_size=3")]
    )
    assert "the dataset has 2 samples" in str(planned.exception)


def test_a_fine_tuning_is_planned_with_samples_that_are_there():
    refused = CliRunner().invoke(app, ["plan", ROOMS, "data.shards=[/nowhere]"])
    assert "planned with its own samples, so name a dataset that can be read" in str(refused.exception)
