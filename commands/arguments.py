"""`CONFIG... [section.key=value ...]`, as every command that reads a configuration takes it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from t4p.config.tasks import JobConfig

ConfigArguments = Annotated[
    list[str], typer.Argument(metavar="CONFIG... [section.key=value ...]", help="YAML files, then overrides.")
]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Files come first, `key=value` overrides after them, in any mixture."""
    return [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]


def load_worker_config(command: str, arguments: list[str]) -> JobConfig:
    """The configuration of one worker of a training, checked as far as it can be without torch.

    Raises:
        ConfigError, ShardError, CheckpointError, RunError: it cannot work; nothing has been started.
    """
    from t4p.config.files import load_for_command
    from t4p.config.tasks import JobConfig
    from t4p.tasks.beforehand import look_beforehand

    config = load_for_command(command, *split_arguments(arguments), lambda _: int(os.environ.get("WORLD_SIZE", "1")))
    assert isinstance(config, JobConfig)
    look_beforehand(config)
    return config
