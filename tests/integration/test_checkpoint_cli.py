"""`t4p checkpoint list | verify | convert`: what they say of whole, damaged and unfinished checkpoints.

Converting and exporting real ones is in test_resume_worlds.py.
"""

import json
import os
import shutil

import pytest
from saved_checkpoint import MODEL, save_checkpoint
from typer.testing import CliRunner

from commands.checkpoint import app
from shards.errors import CallError, UserError
from t4p.errors import CheckpointError, ConfigError
from t4p.runs.checkpoint import MARKER, CheckpointState, checkpoint_name, write_marker


def call(*arguments):
    """The command's output; what the user is told as an error comes as the exception that `main` prints."""
    result = CliRunner().invoke(
        app, list(map(str, arguments)), env={"COLUMNS": "300"}
    )  # one line for a path of any length
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def make(run_dir, step, *, marker=True, stage=1, name=None):
    state = CheckpointState(step, 2, {"train": {"zero_stage": stage}}, (), "f" * 64, {})
    directory = run_dir / "checkpoints" / (name or checkpoint_name(step))
    return save_checkpoint(directory, state, bytes(1_000_000), marker=marker)


@pytest.fixture
def run_dir(tmp_path):
    make(tmp_path, 10)
    make(tmp_path, 20, marker=False)
    make(tmp_path, 30, stage=3)
    (make(tmp_path, 40) / MODEL).write_bytes(b"short")
    make(tmp_path, 50, name="step_00000050.incomplete-0")
    make(tmp_path, 5, name="step_00000005.deleted")
    (tmp_path / "checkpoints" / "step_00000060").mkdir()
    universal = tmp_path / "checkpoints" / "step_00000030.universal"
    shutil.copytree(tmp_path / "checkpoints" / "step_00000010", universal)
    (universal / "zero").mkdir()
    (universal / "zero" / "optimizer_state.pt").touch()
    (universal / MARKER).unlink()
    write_marker(universal)
    return tmp_path


def test_list_tells_what_counts_and_why_the_others_do_not(run_dir):
    entries = {entry["name"]: entry for entry in json.loads(call("list", run_dir, "--json"))["checkpoints"]}
    assert list(entries) == [
        "step_00000005.deleted",
        "step_00000010",
        "step_00000020",
        "step_00000030",
        "step_00000040",
        "step_00000050.incomplete-0",
        "step_00000060",
    ]
    first = entries["step_00000010"]
    assert (first["step"], first["world_size"], first["zero_stage"]) == (10, 2, 1)
    assert first["problem"] is None
    assert first["size_bytes"] > 2_000_000
    assert [name for name, entry in entries.items() if entry["universal"]] == ["step_00000030"]
    assert "no COMPLETE.json" in entries["step_00000020"]["problem"]
    assert "model_states.pt: 5 bytes, wanted 1000000 bytes" in entries["step_00000040"]["problem"]
    assert "no COMPLETE.json" in entries["step_00000060"]["problem"]
    assert "moved aside" in entries["step_00000050.incomplete-0"]["problem"]
    assert "being deleted" in entries["step_00000005.deleted"]["problem"]
    assert entries["step_00000060"]["step"] is None


def test_list_as_a_table_has_a_row_for_each(run_dir):
    rows = call("list", run_dir).splitlines()
    assert len(rows) == 8
    assert rows[2].split() == ["step_00000010", "10", "2", "1", "3.0", "whole"]
    assert rows[4].rstrip().endswith("whole, and universal")


def test_list_of_something_else_is_a_wrong_call(tmp_path):
    with pytest.raises(ConfigError, match="no run folder; wanted one that holds checkpoints/"):
        call("list", tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    assert "no checkpoint yet" in call("list", tmp_path)


def test_verify_reads_every_byte(run_dir):
    directory = run_dir / "checkpoints" / "step_00000010"
    assert "whole; checkpoint of 2 rank(s), step 10, 3.0 MB" in call("verify", directory)
    content = bytearray((directory / MODEL).read_bytes())
    content[12345] ^= 1
    (directory / MODEL).write_bytes(content)
    assert json.loads(call("list", run_dir, "--json"))["checkpoints"][1]["problem"] is None
    with pytest.raises(CheckpointError, match=r"model_states.pt: its sha256 is not the one in COMPLETE.json"):
        call("verify", directory)


def test_convert_refuses_what_needs_no_conversion_or_cannot_have_one(run_dir):
    stage_0 = make(run_dir, 70, stage=0)
    with pytest.raises(ConfigError, match="which any number of ranks loads as it is"):
        call("convert", stage_0)
    with pytest.raises(ConfigError, match="universal checkpoint already"):
        call("convert", run_dir / "checkpoints" / "step_00000030.universal")
    with pytest.raises(CheckpointError, match=r"no COMPLETE\.json"):
        call("convert", run_dir / "checkpoints" / "step_00000020")
    with pytest.raises(ConfigError, match="exists, and is no universal checkpoint"):
        call("convert", run_dir / "checkpoints" / "step_00000010", "--out", run_dir)
    other = run_dir / "checkpoints" / "step_00000030.universal"
    with pytest.raises(CheckpointError, match=r"not made from .*step_00000010 as it is now; choose another --out"):
        call("convert", run_dir / "checkpoints" / "step_00000010", "--out", other)


def test_export_refuses_a_path_that_cannot_be_a_file_and_a_checkpoint_that_is_not_whole(run_dir):
    with pytest.raises(CallError, match="wanted the path of a file in a folder that exists"):
        call("export", run_dir / "checkpoints" / "step_00000010", run_dir / "nowhere" / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"no COMPLETE\.json"):
        call("export", run_dir / "checkpoints" / "step_00000020", run_dir / "out.safetensors")
    (run_dir / "out.safetensors").touch()
    with pytest.raises(CallError, match=r"out\.safetensors: exists already; .* --force"):
        call("export", run_dir / "checkpoints" / "step_00000010", run_dir / "out.safetensors")


@pytest.mark.parametrize("command", ["verify", "export", "convert"])
def test_a_file_that_is_not_in_the_marker_is_refused_before_it_is_opened(run_dir, command):
    checkpoint = run_dir / "checkpoints" / "step_00000010"
    os.mkfifo(checkpoint / "zero_pp_rank_2_mp_rank_00_optim_states.pt")  # whoever opened it would wait for ever
    out = [run_dir / "out.safetensors"] if command == "export" else []
    with pytest.raises(CheckpointError, match=r"rank_2.*: lies in the checkpoint, and COMPLETE\.json does not list it"):
        call(command, checkpoint, *out)


@pytest.mark.parametrize("command", ["verify", "export", "convert"])
def test_a_run_folder_is_its_newest_whole_checkpoint_and_that_is_said(run_dir, command):
    out = [run_dir / "out.safetensors"] if command == "export" else []
    result = CliRunner().invoke(
        app, [command, str(run_dir), *map(str, out)], env={"COLUMNS": "300"}
    )  # one line for a path of any length
    lines = result.output.splitlines()
    assert [line.partition(":")[0] for line in lines[:2]] == ["passed over", "passed over"]
    assert f"{run_dir}: a run folder, of which step_00000030 is taken, its newest whole checkpoint" in lines
    if command == "verify":
        assert lines[-1].startswith(f"{run_dir}/checkpoints/step_00000030: whole; checkpoint of 2 rank(s), step 30")


def test_what_is_neither_a_checkpoint_nor_a_run_folder_is_called_so(tmp_path):
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a run folder; name a run folder, or one of"):
        call("verify", tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="a run folder without a whole checkpoint; name another one"):
        call("verify", tmp_path)
