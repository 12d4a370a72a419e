"""`CONFIG... [section.key=value ...]`, as every command that reads a configuration takes it."""

from __future__ import annotations

from typing import Annotated

import typer

ConfigArguments = Annotated[
    list[str], typer.Argument(metavar="CONFIG... [section.key=value ...]", help="YAML files, then overrides.")
]


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Files come first, `key=value` overrides after them, in any mixture."""
    return [a for a in arguments if "=" not in a], [a for a in arguments if "=" in a]
