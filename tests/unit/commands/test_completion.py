"""What the shell is offered, the version, and help by its short name with an example."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.completion import complete_config, complete_format
from commands.main import app


def test_formats_are_offered_with_what_they_are() -> None:
    offered = dict(complete_format("s"))
    assert {"seven-scenes", "synthetic", "synthetic-scenes"} <= set(offered)
    assert all(offered.values())
    assert complete_format("nothing") == []


def test_files_here_packaged_ones_and_keys_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.yaml").touch()
    (tmp_path / "mine" / "picture.png").touch()
    (tmp_path / "top.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert complete_config("mine/") == ["mine/a.yaml"]
    assert complete_config("to") == ["top.yaml"]
    assert "configs/pretrain/own.yaml" in complete_config("configs/pre")
    assert "train.num_steps=" in complete_config("train.num")
    assert complete_config("train.num_steps=1") == []
    assert {"mine/", "top.yaml", "configs/smoke.yaml", "data.shards="} <= set(complete_config(""))


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [("pretrain",), ("shards", "pack"), ("plan",)])
def test_help_has_a_short_name_and_an_example(command: tuple[str, ...], flag: str) -> None:
    said = CliRunner().invoke(app, [*command, flag])
    assert said.exit_code == 0
    assert "Example: t4p" in said.output


def test_the_version_is_said() -> None:
    said = CliRunner().invoke(app, ["--version"])
    assert said.exit_code == 0
    assert said.output.startswith("t4p ")
