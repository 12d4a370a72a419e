"""The `t4p config` commands: what can be set, and what a run would use."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from commands.arguments import ConfigArguments, split_arguments

if TYPE_CHECKING:
    from t4p.config.section import Section

app = typer.Typer(help="What can be set in a configuration, and what a run would use.", no_args_is_help=True)


@app.command("keys")
def keys_command(
    section: Annotated[
        str,
        typer.Argument(metavar="[SECTION]", help="train, model.unet, or one key. Default: all."),
    ] = "",
    task: Annotated[str, typer.Option(help="Whose configuration: `task` of a training job, or evaluate.")] = "pretrain",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/configuration.md, of all tasks.")] = False,
) -> None:
    """Every key with its type, default and meaning."""
    from t4p.config.keys import page_of, sections_of

    if markdown:
        typer.echo(page_of(schemas_by_heading()), nl=False)
        return
    sections = sections_of(schema_of(task), section)
    if as_json:
        typer.echo(json.dumps({"keys": [asdict(key) for section in sections for key in section.keys]}))
        return
    for index, shown in enumerate(sections):
        heading = f"{shown.name}: {shown.meaning}" if shown.meaning else shown.name
        typer.echo(("\n" if index else "") + (f"{heading}\n" if heading else ""), nl=False)
        for key in shown.keys:
            default = "must be given" if key.default is None else f"= {key.default}"
            typer.echo(f"  {key.name} {default}  ({key.type})\n      {key.meaning}")


@app.command("show")
def show_command(
    arguments: ConfigArguments,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """What a run would use, and every problem with it; exit status 2 if there is one. Nothing is read but the files."""
    import yaml

    from t4p.config.files import command_of, resolve

    files, overrides = split_arguments(arguments)
    command = command_of(files, overrides)
    resolved = resolve(command, files, overrides, lambda cluster: cluster.num_workers)
    if as_json:
        answer = {"command": command, "config": resolved.tree, "problems": resolved.problems}
        typer.echo(json.dumps(answer))
    else:
        typer.echo(f"# as `t4p {command}` reads it\n", nl=False)
        typer.echo(yaml.safe_dump(resolved.tree, sort_keys=False, allow_unicode=True), nl=False)
        for number, problem in enumerate(resolved.problems):
            before = "" if number else f"{len(resolved.problems)} problem(s) in the configuration\n"
            typer.echo(f"{before}  {problem}", err=True)
    raise typer.Exit(2 if resolved.problems else 0)


def schemas_by_heading() -> dict[str, type[Section]]:
    """Every configuration that a command reads, by its heading on the page of keys."""
    from t4p.config.kinds import EVALUATE, TASKS, schemas

    jobs = {f"`t4p {task.command}`, task {name}": task.schema for name, task in TASKS.items()}
    return jobs | {f"`t4p {EVALUATE}`": schema for schema in schemas()[EVALUATE]}


def schema_of(task: str) -> type[Section]:
    """The schema of a task, or of evaluation.

    Raises:
        ConfigError: there is no such task.
    """
    from t4p.config.kinds import EVALUATE, TASKS, schemas
    from t4p.errors import ConfigError

    if task == EVALUATE:
        return schemas()[EVALUATE][0]
    if task not in TASKS:
        raise ConfigError(f"--task is {task!r}; known: {', '.join([*TASKS, EVALUATE])}")
    return TASKS[task].schema
