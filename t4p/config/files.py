"""How configuration files and overrides become one frozen tree of `t4p.config`, and a tree a file again.

Files merge left to right, `section.key=value` overrides come last, unknown keys are errors, and every problem is
reported at once with its origin.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from t4p.config.check import check
from t4p.config.kinds import TASKS, schemas, task_named
from t4p.config.labels import read_labels
from t4p.config.packaged import find_packaged
from t4p.config.run import ClusterConfig
from t4p.config.section import RULES_LATER, Problem, Section
from t4p.config.tasks import JobConfig, PretrainConfig
from t4p.config.words import KeyPath, describe, field_at, unknown_keys
from t4p.config.yaml_text import MAX_CHARACTERS, YamlError, parse_yaml
from t4p.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Section)
_LABELS = "model.labels"  # its value may be a mapping, whose keys are no keys of the configuration and have an order
# How many workers there will be, of a valid `cluster` section.
World = Callable[[ClusterConfig], int]


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> PretrainConfig:
    """The configuration of a pre-training; see `load_config_of`."""
    return load_config_of(PretrainConfig, files, overrides)


def load_config_of(schema: type[AnyConfig], files: Sequence[str | Path], overrides: Sequence[str] = ()) -> AnyConfig:
    """Read configuration files left to right, then overrides, into one frozen tree.

    Args:
        schema: schema of the job.
        files: YAML files. A path that does not exist but begins with `configs/` is taken from the installed package.
        overrides: `section.key=value`, the value in YAML syntax.

    Raises:
        ConfigError: lists every problem at once, each with its key, the value found, and the file it came from.
    """
    return _without_problems(_resolved(schema, _read(files, overrides), None))


def load_for_command(
    command: str, files: Sequence[str | Path], overrides: Sequence[str] = (), world: World | None = None
) -> Section:
    """Read the configuration of a command: the schema is that of its task.

    Args:
        command: subcommand of `t4p`, as `t4p.config.kinds.schemas` lists them.
        files, overrides: as for `load_config_of`. `task` in them chooses among the tasks of the command.
        world: how many workers there will be; None leaves out what depends on it.

    Raises:
        ConfigError: as `load_config_of`; or the configuration is one of another command, which is named.
    """
    return _without_problems(resolve(command, files, overrides, world))


@dataclass(frozen=True)
class Resolved:
    """A configuration as a command would read it, right or wrong.

    Attributes:
        config: the frozen tree; with problems, defaults stand where nothing usable was given.
        tree: every key, dumped. With problems what was given stands there, and null for what is missing.
        problems: a line each.
    """

    config: Section
    tree: Mapping[str, Any]
    problems: tuple[str, ...]


def resolve(
    command: str, files: Sequence[str | Path], overrides: Sequence[str] = (), world: World | None = None
) -> Resolved:
    """As `load_for_command`, for who wants to see a configuration with its problems.

    Raises:
        ConfigError: a file cannot be read, or the configuration is one of another command.
    """
    given = _read(files, overrides)
    schema: type[Section] = schemas()[command][0]
    if "task" in given.tree and command in {task.command for task in TASKS.values()}:
        task = task_named(given.tree["task"])
        if task.command != command:
            raise ConfigError(
                f"task is {task.name} [{given.origins['task',]}], which is not what `t4p {command}` runs; "
                f"run `t4p {task.command}` with these files"
            )
        schema = task.schema
    _refuse_other_command(command, schema, given.tree)
    return _resolved(schema, given, world)


def command_of(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> str:
    """The command that a configuration is for: by its task, else by its keys; the first one where they fit several.

    Raises:
        ConfigError: a file cannot be read, or the task is unknown.
    """
    tree = _read(files, overrides).tree
    if "task" in tree:
        return task_named(tree["task"]).command
    candidates = [(command, schema) for command, found in schemas().items() for schema in found]
    return min(candidates, key=lambda candidate: len(list(unknown_keys(tree, candidate[1]))))[0]


def load_network(config: str | Path | Mapping[str, Any]) -> JobConfig:
    """The network that a file or a tree describes: what stands there beside `task` and `model` is not looked at.

    Returns:
        A configuration of which only these two are meant.

    Raises:
        ConfigError: lists every problem of `model`; or the task is unknown.
    """
    given = _Given()
    if isinstance(config, Mapping):
        _merge(given.tree, config, given.origins, "mapping")
    else:
        given = _read([config], ())
    task = task_named(given.tree.get("task", next(iter(TASKS))))
    tree = {"run": {"dir": "none"}, "data": {"shards": ["none"]}, "model": given.tree.get("model", {})}
    return _without_problems(_resolved(task.schema, _Given(tree, given.origins), None, about="model"))


@dataclass
class _Given:
    """What files and overrides say, and which of them said it last."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)

    def origin(self, path: Sequence[str]) -> str:
        """` [FILE]`, for the end of a line; empty where nobody gave the key or a section around it."""
        found = next(
            (self.origins[tuple(path[:n])] for n in range(len(path), 0, -1) if tuple(path[:n]) in self.origins), None
        )
        return f" [{found}]" if found else ""


def _read(files: Sequence[str | Path], overrides: Sequence[str]) -> _Given:
    given = _Given()
    for file in files:
        path = find_packaged(file)
        _merge(given.tree, _read_yaml(path), given.origins, path.name)
    for override in overrides:
        _merge(given.tree, _parse_override(override), given.origins, "command line")
    return given


def _refuse_other_command(command: str, schema: type[Section], tree: Mapping[str, Any]) -> None:
    """Keys that are unknown here and known where another command reads them tell that it is the wrong command."""
    unknown = list(unknown_keys(tree, schema))
    for other, others in schemas().items():
        for candidate in others:
            strange = set(unknown_keys(tree, candidate))
            if other != command and len(strange) < len(unknown):
                keys = ", ".join(".".join(path) for path in unknown if path not in strange)
                raise ConfigError(
                    f"this is a configuration of `t4p {other}` ({keys}); run `t4p {other}` with it, or take these keys "
                    f"out for `t4p {command}`"
                )


def _resolved(schema: type[Section], given: _Given, world: World | None, about: str = "") -> Resolved:
    """The frozen tree, and every problem: of keys and values, within sections, and between them.

    Args:
        about: the section that matters; all by default.
    """
    lines, config, repaired = _gather(schema, given)
    if isinstance(config, JobConfig):
        try:
            labels = config.model.labels
            labels = read_labels(labels) if isinstance(labels, str) else labels
        except ConfigError as error:
            lines.append(f"model.labels: {error}{given.origin(('model', 'labels'))}")
        else:
            model = config.model.model_copy(update={"labels": labels})
            config = config.model_copy(update={"model": model})
    num_workers = world(config.cluster) if world is not None and isinstance(config, JobConfig) else None
    for problem in check(config, num_workers):
        if problem.where.startswith(about) and not any(_touches(key, repaired) for key in problem.keys):
            lines.append(f"{problem}{_origin_of(problem, given)}")
    return Resolved(config, _as_given(config, given, repaired), tuple(lines))


def _without_problems(resolved: Resolved) -> Any:
    """The configuration, or one error with every problem."""
    if resolved.problems:
        raise _all_of(resolved.problems)
    return resolved.config


def _all_of(lines: Sequence[str]) -> ConfigError:
    problems = "\n".join(f"  {line}" for line in lines)
    return ConfigError(f"{len(lines)} problem(s) in the configuration\n{problems}")


def _as_given(config: Section, given: _Given, repaired: set[KeyPath]) -> dict[str, Any]:
    """The tree with what was given where something else had to stand for it."""
    tree = config.model_dump(mode="json")
    for *sections, key in sorted(repaired, key=len):
        into: Any = tree
        value: Any = given.tree
        for name in sections:
            into, value = (of.get(name) if isinstance(of, dict) else None for of in (into, value))
        if isinstance(into, dict):  # or the section as a whole is not what it should be, and stands there as given
            into[key] = value.get(key) if isinstance(value, dict) else None
    return tree


def _gather(schema: type[AnyConfig], given: _Given) -> tuple[list[str], AnyConfig, set[KeyPath]]:
    """Every problem that pydantic sees, and the tree with a default wherever there was one.

    Returns:
        A line per problem; the tree, whose sections' rules were not asked; the keys whose values are not those given.
    """
    tree = copy.deepcopy(given.tree)
    lines: list[str] = []
    repaired: set[KeyPath] = set()
    while True:
        try:
            return lines, schema.model_validate(tree, context=RULES_LATER), repaired
        except ValidationError as error:
            before = copy.deepcopy(tree)
            found = dict(describe(error, schema, tree))
            for path, text in found.items():
                # A required key that was wrong is missing now, and so is what a section that was wrong requires.
                if not any(path[:n] in repaired for n in range(1, len(path) + 1)):
                    lines.append(f"{'.'.join(path) or 'configuration'}: {text}{given.origin(path)}")
            for path in found:
                if field_at(path, schema) is not None:
                    repaired.add(path)
                _repair(tree, path, schema)
            if tree == before:  # what stands for a required key is itself refused: no more can be known
                raise _all_of(lines) from None


def _repair(tree: dict[str, Any], path: KeyPath, schema: type[Section]) -> None:
    """Take out what stands at a path; a key that has no default gets something to stand there."""
    *sections, key = path
    for name in sections:
        tree = tree.setdefault(name, {})
    found = field_at(path, schema)
    if found is None or not found.is_required():
        tree.pop(key, None)
    elif isinstance(found.annotation, type) and issubclass(found.annotation, Section):
        tree[key] = {}
    else:
        tree[key] = "missing"


def _touches(key: str, repaired: set[KeyPath]) -> bool:
    parts = tuple(key.split("."))
    return any(parts[: len(path)] == path for path in repaired)


def _origin_of(problem: Problem, given: _Given) -> str:
    """Who set the keys that a problem is about."""
    found = dict.fromkeys(given.origin(key.split(".")).strip(" []") for key in problem.keys)
    named = [origin for origin in found if origin]
    return f" [{', '.join(named)}]" if named else ""


def dump_config(config: JobConfig) -> str:
    """The resolved tree as YAML; loading it again gives an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class ChangedKey:
    """A dotted key in which two dumped configurations differ."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old!r} -> {self.new!r}"


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[ChangedKey]:
    """Where two dumped configurations differ, in the order of `old`."""
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        name = f"{prefix}{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping) and name != _LABELS:
            yield from changed_keys(before, after, f"{name}.")
        elif before != after or _order_of(before) != _order_of(after):
            yield ChangedKey(name, before, after)


def _order_of(value: Any) -> list[Any]:
    """The names of labels, whose order a comparison of mappings does not see."""
    return list(value) if isinstance(value, Mapping) else []


def _read_yaml(path: Path) -> dict[str, Any]:
    if path.is_dir():
        inside = path / "config.yaml"
        is_run = f"a run folder; its configuration is {inside}" if inside.exists() else "a folder, wanted a YAML file"
        raise ConfigError(f"{path}: {is_run}")
    try:
        with path.open(encoding="utf-8") as file:
            tree = parse_yaml(file.read(MAX_CHARACTERS + 1))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except YamlError as error:
        raise ConfigError(f"{path}: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as 'train:' at the top, found a {type(tree).__name__}")
    return tree


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or len(parts) < 2 or not all(parts):
        raise ConfigError(f"{override!r}: an override reads section.key=value, for example train.learning_rate=1e-4")
    if key.startswith(f"{_LABELS}."):
        raise ConfigError(f"{override!r}: labels are set as a whole, for example {_LABELS}={{chair: [chair, seat]}}")
    try:
        value: Any = parse_yaml(text)
    except YamlError as error:
        raise ConfigError(f"{override!r}: the value is {error}") from error
    for part in reversed(parts):
        value = {part: value}
    return value


def _merge(
    into: dict[str, Any],
    tree: Mapping[str, Any],
    origins: dict[tuple[str, ...], str],
    origin: str,
    path: tuple[str, ...] = (),
) -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise ConfigError(f"the key {key!r} is no text [{origin}]; put quotes around it")
        here = (*path, key)
        origins[here] = origin
        if ".".join(here) == _LABELS:  # a mapping of labels replaces another, as a list does
            into[key] = value
        elif isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, origins, origin, here)
        elif isinstance(value, Mapping):
            into[key] = {}
            _merge(into[key], value, origins, origin, here)
        else:
            into[key] = value
