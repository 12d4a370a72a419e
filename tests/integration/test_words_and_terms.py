"""Synonyms and licences from a pre-training through a fine-tuning that is resumed into exports, and the card of one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
import yaml
from forks import run_python

import t4p
from shards.packing.pack import pack
from t4p.config.labels import words_of
from t4p.models.exported import load_exported_network
from t4p.models.prompts import PromptedLabels
from t4p.models.towers import load_towers_from

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_python")]

WORDS = {"wall": ("wall",), "floor": ("floor",), "ceiling": ("ceiling",), "chair": ("chair", "stools", "a sofa")}
TEMPLATE = "point cloud of a {}"

RUN = """
import shutil, sys
from pathlib import Path
from subprocess import CompletedProcess
from t4p.config.files import load_for_command
from t4p.config.kinds import task_named
from t4p.tasks.export import export_checkpoint
from t4p.train.engine import stop_process_group

frames, out = sys.argv[1], Path(sys.argv[2])
same = ["train.global_batch_size=1", "train.warmup_steps=0", "train.checkpoint_every=1", "data.num_workers=0",
        f"model.labels={out / 'labels.yaml'}", f"data.shards=[{frames}]"]

def run(command, file, *more):
    config = load_for_command(command, [file], [*same, *more])
    task_named(config.task).load().run(config)
    stop_process_group()  # and the next run of the process starts another

run("pretrain", "configs/pretrain/rooms.yaml", f"run.dir={out / 'before'}", "train.num_steps=1")
export_checkpoint(out / "before/checkpoints/step_00000001", out / "before.safetensors")
start = f"model.pretrained={out / 'before.safetensors'}"
tuning = ["finetune", "configs/finetune/rooms.yaml", f"run.dir={out / 'tuned'}", "data.ignored_labels=['*']", start]
run(*tuning, "train.num_steps=1")
(out / "before.safetensors").rename(out / "moved.safetensors")
run(*tuning, "train.num_steps=2")
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pre-training's export, `moved.safetensors`, and a fine-tuning of it in `tuned`, resumed once."""
    folder = tmp_path_factory.mktemp("runs")
    pack("synthetic", "seed=11,rooms=1,frames=2", str(folder / "frames"), licence="CC BY 4.0, of a friend")
    (folder / "labels.yaml").write_text(
        yaml.safe_dump({name: list(words) for name, words in WORDS.items()}, sort_keys=False)
    )
    asked = os.environ | {"DS_ACCELERATOR": "cpu"}
    done = run_python(["-c", RUN, str(folder / "frames"), str(folder)], asked, timeout=420)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def export_with_card(runs: Path, name: str) -> CompletedProcess[str]:
    command = ["checkpoint", "export", str(runs / "tuned"), str(runs / f"{name}.safetensors"), "--card"]
    return run_python(["-m", "commands.main", *command], os.environ | {"DS_ACCELERATOR": "cpu"}, timeout=420)


def test_an_export_asks_the_mean_of_the_synonyms_under_the_names(runs: Path) -> None:
    exported = load_exported_network(runs / "moved.safetensors")
    assert exported.labels == tuple(WORDS)
    assert exported.config.model.label_words == WORDS
    towers = load_towers_from(exported.config.model.clip, 0)
    each = towers.encode_labels(WORDS["chair"], TEMPLATE)
    mean = torch.nn.functional.normalize(each.mean(dim=0), dim=0)
    torch.testing.assert_close(exported.label_embeddings[3], mean, rtol=0, atol=1e-6)
    assert float(mean @ each[0]) < 0.999, "it is not the name's own"
    assert not {"stools", "a sofa"} & {*exported.neutral}
    model = t4p.load(runs / "moved.safetensors")
    assert model.synonyms == WORDS
    points = np.random.default_rng(0).random((50, 3)).astype(np.float32)
    colors = np.zeros((50, 3), np.uint8)
    _, scores = model.classify(points, colors)
    np.testing.assert_allclose(scores[:, 3], model.embed(points, colors) @ mean.numpy(), atol=1e-5)


def test_a_fine_tuning_learns_tokens_before_every_synonym_and_its_card_names_what_both_runs_saw(
    runs: Path,
) -> None:
    done = export_with_card(runs, "model")
    assert done.returncode == 0, done.stderr
    exported = load_exported_network(runs / "model.safetensors")
    assert exported.step == 2
    towers = load_towers_from(exported.config.model.clip, 0)
    prompted = PromptedLabels(towers, WORDS, TEMPLATE, None)
    learnt = exported.beside["prompt_tokens"]
    assert not torch.equal(learnt, prompted.initial_tokens)
    torch.testing.assert_close(exported.label_embeddings, prompted.embed(learnt), rtol=0, atol=1e-6)
    plain = PromptedLabels(towers, words_of(tuple(WORDS)), TEMPLATE, None).embed(learnt)
    torch.testing.assert_close(exported.label_embeddings[:3], plain[:3], rtol=0, atol=1e-6)
    assert float((exported.label_embeddings[3] - plain[3]).norm()) > 0.01

    terms = exported.terms
    for found in (terms.datasets, terms.began_with):  # of what it began with also after that has gone
        assert [str(each) for each in found] == ["frames (synthetic, 2 samples): CC BY 4.0, of a friend"]
    assert terms.towers.startswith("Apache-2.0")
    card = (runs / "model.md").read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "other",
        "license_name": "see-data-and-licences",
        "library_name": "text4point",
        "tags": ["point-cloud", "3d", "clip", "open-vocabulary", "point-cloud-segmentation"],
    }
    for line in (
        "- chair: chair, stools, a sofa",
        "- wall",
        "- 2 steps of 1 samples, learning rate 0.003",
        "- fine-tuned from other weights",
        "- trained on frames (synthetic, 2 samples): CC BY 4.0, of a friend",
        "- began with weights trained on frames (synthetic, 2 samples): CC BY 4.0, of a friend",
        f"- CLIP towers configs/clip/small-rooms.json: {terms.towers}",
        "ids, scores = model.classify(points, colors)",
        "- Its head knows its own labels; what it says of other words is what its encoder has kept.",
    ):
        assert f"\n{line}\n" in body, line
    assert "procedural rooms only" not in body
    shutil.copy(runs / "model.md", runs / "other.md")
    refused = export_with_card(runs, "other")
    assert refused.returncode == 2
    assert "other.md: exists already" in refused.stderr
    assert not (runs / "other.safetensors").exists(), "which is told before the work"
