"""How configuration files and overrides become one frozen tree of `t4p.config.tasks`, and a tree a file again.

Files merge left to right, `section.key=value` overrides come last, unknown keys are errors, and every problem is
reported at once with its origin.
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from t4p.config.section import Section
from t4p.config.tasks import JobConfig, PretrainConfig
from t4p.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Section)


def load_config(files: Sequence[str | Path], overrides: Sequence[str] = ()) -> PretrainConfig:
    """The configuration of a pre-training; see `load_config_of`."""
    return load_config_of(PretrainConfig, files, overrides)


def load_config_of(schema: type[AnyConfig], files: Sequence[str | Path], overrides: Sequence[str] = ()) -> AnyConfig:
    """Read configuration files left to right, then overrides, into one frozen tree.

    Args:
        schema: of the job.
        files: YAML files. A path that does not exist but begins with `configs/` is taken from the installed package.
        overrides: `section.key=value`, the value in YAML syntax.

    Raises:
        ConfigError: lists every problem at once, each with its key, the value found, and the file it came from.
    """
    tree: dict[str, Any] = {}
    origins: dict[tuple[str, ...], str] = {}
    for file in files:
        path = find_packaged(file)
        _merge(tree, _read_yaml(path), origins, path.name)
    for override in overrides:
        _merge(tree, _parse_override(override), origins, "command line")
    try:
        config = schema.model_validate(tree)
    except ValidationError as error:
        lines = list(_describe(error, origins, schema))
        problems = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(f"{len(lines)} problem(s) in the configuration\n{problems}") from None
    if isinstance(config, JobConfig):
        model = config.model.model_copy(update={"labels": _read_labels(config.model.labels)})
        return config.model_copy(update={"model": model})
    return config


def find_packaged(path: str | Path) -> Path:
    """The path itself where it exists, else the file of that name among the packaged `configs/`.

    Raises:
        ConfigError: neither exists.
    """
    path = Path(path)
    if path.exists():
        return path
    if path.parts and path.parts[0] == "configs":
        packaged = Path(str(resources.files("configs"))).joinpath(*path.parts[1:])
        if packaged.is_file():
            return packaged
    raise ConfigError(f"{path}: no such file, neither from {Path.cwd()} nor among the packaged configs/")


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
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            yield ChangedKey(f"{prefix}{key}", before, after)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error, and so is a key of many parts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{key!r} stands where a key is wanted; put quotes around a value that begins with a bracket",
                    key_node.start_mark,
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
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
    try:
        value: Any = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from error
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
        here = (*path, str(key))
        origins[here] = origin
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value, origins, origin, here)
        elif isinstance(value, Mapping):
            into[key] = {}
            _merge(into[key], value, origins, origin, here)
        else:
            into[key] = value


def _describe(error: ValidationError, origins: Mapping[tuple[str, ...], str], schema: type[BaseModel]) -> Iterator[str]:
    """One line per problem: `key: what is wrong [file]`."""
    for problem in error.errors(include_url=False):
        path = tuple(str(part) for part in problem["loc"])
        key = ".".join(path) or "configuration"
        origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
        where = f" [{origin}]" if origin else ""
        if problem["type"] == "extra_forbidden":
            yield f"{key}: unknown key{_suggest(path, schema)}{where}"
        elif problem["type"] == "missing":
            yield f"{key}: missing; set it in a file or as {key}=VALUE"
        elif problem["type"] == "value_error":
            yield f"{key}: {str(problem['msg']).removeprefix('Value error, ')}{where}"
        else:
            yield f"{key}: {problem['msg']}, got {problem['input']!r}{where}"


def _suggest(path: tuple[str, ...], schema: type[BaseModel]) -> str:
    section = schema
    for part in path[:-1]:
        field = section.model_fields.get(part)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        section = annotation
    near = difflib.get_close_matches(path[-1], section.model_fields, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(section.model_fields)}"


def _read_labels(labels: tuple[str, ...] | str) -> tuple[str, ...]:
    if isinstance(labels, str):
        path = find_packaged(labels)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.labels: {path} cannot be read ({error}); wanted a UTF-8 text file with one label per line"
            ) from error
        labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise ConfigError("model.labels: the list is empty; at least one label is wanted")
    doubles = sorted({label for label in labels if labels.count(label) > 1})
    if doubles:
        raise ConfigError(f"model.labels: named twice: {', '.join(doubles)}")
    return labels
