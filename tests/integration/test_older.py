"""What version 0.1.0 wrote (tests/data/older, see its README.md) reads as it did then, but its run ends there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from commands.checkpoint import app
from shards.reader import DatasetReader
from t4p.config.data import EvaluatedDataConfig
from t4p.config.files import dump_config, load_config, load_config_of
from t4p.config.kinds import config_of_task
from t4p.config.tasks import SemanticConfig
from t4p.models.exported import load_exported_network
from t4p.tasks import evaluate
from t4p.train.engine import saved_weights

REPOSITORY = Path(__file__).resolve().parents[2]
OLDER = REPOSITORY / "tests/data/older"
RUN = OLDER / "runs/pretrain"
TIE = 1e-4  # scores closer than this are one: rounding decides


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((OLDER / "expected.json").read_text())


def digest(value: Any) -> str:
    if isinstance(value, np.ndarray):
        content = f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    else:
        content = value if isinstance(value, bytes) else repr(value).encode()
    return hashlib.sha256(content).hexdigest()


def digests(tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    return {name: digest(tensor.detach().numpy()) for name, tensor in tensors.items()}


# Fields of a sample that format 1 did not have, all without a value in it.
FIELDS_SINCE = {"depth_format", "depth_size", "no_reading", "segments", "normals"}


def test_every_field_of_every_sample_has_the_same_bits(expected):
    found = {}
    for dataset in ("frames", "scenes"):
        reader = DatasetReader(str(OLDER / dataset))
        read = reader.read_frame if dataset == "frames" else reader.read_scene
        for shard, num_samples in enumerate(reader.samples_per_shard.tolist()):
            for index in range(num_samples):
                sample = read(shard, index)
                fields = {
                    field.name: digest(getattr(sample, field.name))
                    for field in dataclasses.fields(sample)
                    if field.name not in FIELDS_SINCE
                }
                assert all(not value or value == "png" for value in map(vars(sample).get, FIELDS_SINCE))
                found[f"{dataset}:{reader.key(shard, index)}"] = fields
    assert found == expected["samples"]


def test_weights_of_the_checkpoint_and_of_both_exports_have_the_same_bits(expected):
    from safetensors.torch import load_file

    checkpoint = digests(saved_weights(RUN / "checkpoints/step_00000002", zero_stage=1))
    exports = {name: digests(load_file(OLDER / f"{name}.safetensors")) for name in ("pretrain", "semantic")}
    for name, found in {"checkpoint": checkpoint, **exports}.items():
        assert found == expected["weights"][name], name


@pytest.mark.parametrize("dataset", ["frames", "scenes"])
@pytest.mark.parametrize("name", ["pretrain", "semantic"])
def test_both_exports_predict_what_they_did(name, dataset, monkeypatch):
    exported = load_exported_network(OLDER / f"{name}.safetensors")
    scores_of_points = []
    predict = evaluate.predict

    def noting_scores(exported, batch):
        found = evaluate.voxel_scores(exported, batch.voxel_coords, batch.voxel_features, batch.bottleneck_of_voxel)
        scores_of_points.append(found.scores[batch.voxel_of_point])
        return predict(exported, batch)

    monkeypatch.setattr(evaluate, "predict", noting_scores)
    scored = EvaluatedDataConfig(shards=(str(OLDER / dataset),), pixel_stride=2, ignored_labels=("*",), num_workers=0)
    found = torch.cat([labels for labels, _ in evaluate.label_points(exported, scored)])
    wanted = torch.from_numpy(np.load(OLDER / "predictions.npz")[f"{name}_{dataset}"]).long()
    assert found.shape == wanted.shape
    scores = torch.cat(scores_of_points)
    differ = found != wanted
    behind = scores.amax(1) - scores.gather(1, wanted[:, None]).squeeze(1)
    assert (behind[differ] < TIE).all(), f"{int(differ.sum())} of {len(wanted)} labels differ, up to {behind.max()}"


# Keys that version 0.1.0 as it was frozen did not have.
SINCE = {
    "train.step_timeout",
    "train.save_on_stop",
    "data.cache_dir",
    "data.cache_bytes",
    "data.drop_features.color",
    "data.drop_features.height",
}
SINCE_OF_FINETUNING = {
    "train.layer_decay",
    "data.augment.elastic",
    "data.augment.position_jitter",
    "data.augment.mix",
    "data.label_fraction",
    "data.labels_per_scene",
}


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


@pytest.mark.parametrize("run", ["pretrain", "semantic"])
def test_a_resolved_configuration_resolves_to_itself(run):
    path = OLDER / "runs" / run / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    loaded = load_config([path]) if run == "pretrain" else load_config_of(SemanticConfig, [path])
    dumped, then = leaves(yaml.safe_load(dump_config(loaded))), leaves(tree)
    # Every key of then says what it said; keys that came since have their defaults.
    assert {key: dumped[key] for key in then} == then
    since = {key for key in dumped.keys() - then.keys() if "." in key and key.partition(".")[0] in tree}
    assert since == (SINCE if run == "pretrain" else SINCE | SINCE_OF_FINETUNING)
    assert config_of_task(tree) == loaded


@pytest.fixture
def run_dir(tmp_path) -> Path:
    """The run folder of the pre-training, copied: reading it may not write beside the original."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def test_its_checkpoint_is_listed_and_found_whole(run_dir):
    listed = CliRunner().invoke(app, ["list", str(run_dir), "--json"])
    assert listed.exit_code == 0, listed.output
    (checkpoint,) = json.loads(listed.output)["checkpoints"]
    assert (checkpoint["step"], checkpoint["world_size"]) == (2, 2)
    verified = CliRunner().invoke(app, ["verify", str(run_dir / "checkpoints/step_00000002")])
    assert verified.exit_code == 0, verified.output


def test_it_is_not_gone_on_with_in_another_order_of_samples(run_dir):
    """Its blocks counted samples. What was begun in order 1 ends with version 0.1.0."""
    before = (run_dir / "metrics.jsonl").read_text()
    program = [sys.executable, "-m", "commands.main", "pretrain", str(run_dir / "config.yaml")]
    ran = subprocess.run([*program, f"run.dir={run_dir}"], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "step_00000002: cannot resume, its samples came in order 1 and this version has order 2" in ran.stderr
    assert "end it with the version that began it (0.1.0), or begin a new run in another run.dir" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert (run_dir / "metrics.jsonl").read_text() == before
