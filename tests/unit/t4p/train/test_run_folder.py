"""Which checkpoint a run begins from."""

import platform
import shutil
from importlib.metadata import PackageNotFoundError

import pytest
from saved_checkpoint import MODEL, save_checkpoint

from t4p.errors import CheckpointError, ConfigError
from t4p.runs.checkpoint import MARKER, CheckpointState, checkpoint_name, write_marker
from t4p.runs.universal import make_universal
from t4p.train import run_folder
from t4p.train.run_folder import choose_checkpoint, installed_versions


def make(checkpoints, step):
    state = CheckpointState(step, 2, {"train": {"zero_stage": 1}}, (), "", {})
    return save_checkpoint(checkpoints / checkpoint_name(step), state)


def convert(source, destination):
    shutil.copytree(source, destination / "zero")
    shutil.copy(source / MODEL, destination / MODEL)


@pytest.fixture
def checkpoints(tmp_path):
    make(tmp_path, 1)
    make(tmp_path, 2)
    return tmp_path


def test_auto_takes_the_newest_whole_one_and_never_a_universal_one(checkpoints):
    newest = checkpoints / "step_00000002"
    make_universal(newest, checkpoints / "step_00000002.universal", convert, print)
    assert choose_checkpoint("auto", checkpoints) == newest
    (newest / MODEL).write_bytes(b"Weights")
    assert choose_checkpoint("auto", checkpoints) == checkpoints / "step_00000001"
    assert choose_checkpoint("auto", checkpoints / "nothing") is None


def test_the_newest_may_be_named_also_in_its_universal_form_elsewhere(checkpoints, tmp_path_factory):
    newest, elsewhere = checkpoints / "step_00000002", tmp_path_factory.mktemp("other") / "converted"
    make_universal(newest, elsewhere, convert, print)
    assert choose_checkpoint(str(newest), checkpoints) == newest
    assert choose_checkpoint(str(elsewhere), checkpoints) == elsewhere
    make(checkpoints, 3)
    for older in (newest, elsewhere):
        with pytest.raises(ConfigError, match="holds step_00000003: going on from another one would mix two runs"):
            choose_checkpoint(str(older), checkpoints)
        assert choose_checkpoint(str(older), checkpoints / "another run") == older


def test_a_universal_one_of_an_earlier_save_is_not_the_newest(checkpoints, tmp_path_factory):
    newest, elsewhere = checkpoints / "step_00000002", tmp_path_factory.mktemp("other") / "converted"
    make_universal(newest, elsewhere, convert, print)
    (newest / MODEL).write_bytes(b"Weights")
    (newest / MARKER).unlink()
    write_marker(newest)
    with pytest.raises(ConfigError, match="holds step_00000002: going on from another one would mix two runs"):
        choose_checkpoint(str(elsewhere), checkpoints)


def test_what_is_not_whole_cannot_be_named(checkpoints):
    (checkpoints / "step_00000002" / MODEL).unlink()
    with pytest.raises(CheckpointError, match=r"model_states\.pt: missing"):
        choose_checkpoint(str(checkpoints / "step_00000002"), checkpoints)
    with pytest.raises(ConfigError, match=r"train.resume is 'never', but .* holds step_00000001"):
        choose_checkpoint("never", checkpoints)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_only_damaged_checkpoints_begin_no_run_and_are_all_named(checkpoints, resume):
    for step in (1, 2):
        (checkpoints / checkpoint_name(step) / MODEL).write_bytes(b"Weights")
    make(checkpoints, 3)
    (checkpoints / "step_00000003" / MARKER).unlink()
    with pytest.raises(CheckpointError, match="no whole one to resume from") as caught:
        choose_checkpoint(resume, checkpoints)
    lines = str(caught.value).splitlines()
    assert [name for line in lines for name in ("step_00000003", "step_00000002", "step_00000001") if name in line] == [
        "step_00000003",
        "step_00000002",
        "step_00000001",
    ]
    assert "move its checkpoints away" in lines[-1]


def test_leftovers_without_a_marker_may_begin_anew(checkpoints, capsys):
    for step in (1, 2):
        (checkpoints / checkpoint_name(step) / MARKER).unlink()
    assert choose_checkpoint("auto", checkpoints) is None
    assert capsys.readouterr().out.count("passed over: ") == 2
    assert choose_checkpoint("never", checkpoints) is None


def test_a_package_that_is_not_installed_is_recorded_as_such(monkeypatch):
    def version(name):
        if name == "text4point":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(run_folder, "version", version)
    versions = installed_versions()
    assert versions["text4point"] == "not installed"
    assert versions["torch"] == "1.2"
    assert versions["python"] == platform.python_version()
