"""The groups of the command line: each has its module's commands, and says of itself what the module says."""

from __future__ import annotations

import importlib

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from commands.main import app

COMMANDS = {
    "shards": ["formats", "pack", "check", "verify", "index", "info", "show", "page", "list", "order"],
    "checkpoint": ["list", "verify", "convert", "export"],
    "launch": ["pretrain", "finetune", "list", "status", "logs", "stop"],
    "bench": ["data"],
    "config": ["keys", "show"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_group_has_the_commands_and_the_help_of_its_module(name: str) -> None:
    listed = CliRunner().invoke(app, [name, "--help"])
    assert listed.exit_code == 0
    module = importlib.import_module(f"commands.{name}")
    assert list(get_group(module.app).commands) == COMMANDS[name]
    for command in COMMANDS[name]:
        assert f" {command} " in listed.output
    assert module.app.info.help in " ".join(listed.output.split())


def test_a_group_without_a_command_shows_its_help() -> None:
    shown, asked = (CliRunner().invoke(app, ["launch", *arguments]).output for arguments in ([], ["--help"]))
    assert shown.strip() == asked.strip()


def test_a_command_that_a_group_lacks_is_refused() -> None:
    refused = CliRunner().invoke(app, ["shards", "nothere"])
    assert refused.exit_code == 2
    assert "No such command 'nothere'" in refused.output
