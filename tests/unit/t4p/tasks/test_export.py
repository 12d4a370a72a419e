"""An export needs the towers of the run, and nothing less."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from saved_checkpoint import save_checkpoint

from t4p.config.files import load_config, load_config_of
from t4p.config.tasks import SemanticConfig
from t4p.errors import CheckpointError, ClipError, ConfigError
from t4p.runs.checkpoint import CheckpointState, write_marker, write_state
from t4p.tasks.export import blend, export_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return make(tmp_path / "step_00000120", load_config(["configs/smoke.yaml"], ["data.shards=[none]"]))


def make(directory, config):
    state = CheckpointState(120, 2, config.model_dump(mode="json"), (), "f" * 64, {"text4point": "0.1.0"})
    return save_checkpoint(directory, state)


def test_other_towers_are_refused(checkpoint, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=r"towers with sha256 ffffffffffff, and .*--pretrained"):
        export_checkpoint(checkpoint, out)
    with pytest.raises(ClipError, match=r"model.clip.pretrained is '/nowhere/clip\.pt'"):
        export_checkpoint(checkpoint, out, pretrained="/nowhere/clip.pt")
    assert not out.exists()


def test_a_configuration_of_another_version_is_told(checkpoint, tmp_path):
    write_state(checkpoint, CheckpointState(120, 2, {"of": "old"}, (), "f" * 64, {"text4point": "0.0.1"}))
    (checkpoint / "COMPLETE.json").unlink()
    write_marker(checkpoint)
    with pytest.raises(CheckpointError, match=r"another version of text4point .*the version that wrote it \(0\.0\.1\)"):
        export_checkpoint(checkpoint, tmp_path / "out.safetensors")


FEW_LABELS = ["configs/finetune/rooms.yaml", "configs/finetune/few_labels.yaml"]


@pytest.mark.parametrize(
    ("files", "overrides", "problem"),
    [
        (FEW_LABELS, [], "began with random weights"),
        (FEW_LABELS[:1], ["model.pretrained=start.safetensors"], "has model.head=linear, whose random weights"),
        (
            FEW_LABELS,
            ["model.pretrained=start.safetensors", "model.prompt_tokens=4"],
            "has model.prompt_tokens=4, random",
        ),
        (["configs/smoke.yaml"], ["data.shards=[none]"], "is of a pre-training"),
    ],
)
def test_a_share_of_what_did_not_begin_with_words_is_refused(tmp_path, files, overrides, problem):
    is_pretraining = files == ["configs/smoke.yaml"]
    config = load_config(files, overrides) if is_pretraining else load_config_of(SemanticConfig, files, overrides)
    checkpoint = make(tmp_path / "step_00000400", config)
    with pytest.raises(ConfigError, match=rf"step_00000400: {problem}.*configs/finetune/few_labels\.yaml"):
        export_checkpoint(checkpoint, tmp_path / "out.safetensors", finetuned_share=0.3)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_none_and_all(checkpoint, tmp_path, share):
    with pytest.raises(ConfigError, match="wanted a number from 0 to 1"):
        export_checkpoint(checkpoint, tmp_path / "out.safetensors", finetuned_share=share)


numbers = st.floats(-1e3, 1e3, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=20), st.floats(0, 1))
def test_a_blend_lies_between_the_beginning_and_the_end(pairs, share):
    start, end = torch.tensor(pairs).T
    blended = blend({"a": start, "n": torch.tensor(3)}, {"a": end, "n": torch.tensor(7)}, share)
    assert blended["n"] == 7, "what counts is not averaged"
    wanted = [(1 - share) * first + share * last for first, last in pairs]
    assert blended["a"].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-3)
    assert torch.equal(blend({"a": start}, {"a": end}, 0.0)["a"], start)
    assert torch.equal(blend({"a": start}, {"a": end}, 1.0)["a"], end)
