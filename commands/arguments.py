"""`CONFIG... [section.key=value ...]`, as every command that reads a configuration takes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from commands.completion import complete_config

if TYPE_CHECKING:
    from t4p.config.tasks import JobConfig

ConfigArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="CONFIG... [section.key=value ...]",
        help="YAML files, then overrides; `t4p config keys` lists the keys.",
        autocompletion=complete_config,
    ),
]

Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Files come first, `key=value` overrides after them, in any mixture."""
    return [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]


def world_of(environment: Mapping[str, str]) -> int:
    """How many workers the environment says there are, as torchrun and Ray set it; one without a word.

    Raises:
        ConfigError: its variables are no numbers, do not fit each other, or are not all there.
    """
    from t4p.errors import ConfigError

    given = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment}
    if wrong := [f"{name}={value!r}" for name, value in given.items() if not value.isdecimal()]:
        raise ConfigError(
            f"{', '.join(wrong)} in the environment: wanted whole numbers; unset them to be one worker alone"
        )
    rank, world_size = int(given.get("RANK", "0")), int(given.get("WORLD_SIZE", "1"))
    if rank >= world_size:
        raise ConfigError(
            f"RANK={rank} and WORLD_SIZE={world_size} in the environment: ranks count from 0 to WORLD_SIZE - 1; set "
            "both, or start the workers with `t4p launch` or torchrun"
        )
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if world_size > 1 and (missing := [name for name in needed if name not in environment]):
        raise ConfigError(
            f"WORLD_SIZE={world_size} in the environment, without {', '.join(missing)}; start the workers with "
            "`t4p launch ... --workers N` or torchrun, which set them, or unset it to be one worker alone"
        )
    return world_size


def load_worker_config(command: str, arguments: list[str]) -> JobConfig:
    """The configuration of one worker of a training, checked as far as it can be without torch.

    Raises:
        ConfigError, ShardError, CheckpointError, RunError: it cannot work; nothing has been started.
    """
    from t4p.config.files import load_for_command
    from t4p.config.tasks import JobConfig
    from t4p.tasks.beforehand import look_beforehand

    world_size = world_of(os.environ)
    config = load_for_command(command, *split_arguments(arguments), lambda _: world_size)
    assert isinstance(config, JobConfig)
    look_beforehand(config)
    return config
