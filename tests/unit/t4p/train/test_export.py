"""An export needs the towers of the run, and nothing less."""

import pytest

from t4p.config_files import load_config
from t4p.errors import CheckpointError
from t4p.models.clip import ClipError
from t4p.train.checkpoint import CheckpointState, write_marker, write_state
from t4p.train.export import export_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    config = load_config(["configs/smoke.yaml"], ["data.shards=[none]"]).model_dump(mode="json")
    directory = tmp_path / "step_00000120"
    directory.mkdir()
    write_state(directory, CheckpointState(120, 2, config, (), "f" * 64, {"text4point": "0.1.0"}))
    write_marker(directory)
    return directory


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
