"""pydantic's findings in the words of YAML, and where a key stands in a schema."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from t4p.config.section import Section

KeyPath = tuple[str, ...]

_WANTED = {
    "bool": "true or false",
    "dict": "a mapping, such as {a: [b, c]}",
    "float": "a number",
    "int": "a whole number",
    "list": "a list, such as [a, b]",
    "mapping": "keys below it, one a line",
    "model": "keys below it, one a line",
    "string": "text",
    "tuple": "a list, such as [a, b]",
}


def describe(error: ValidationError, schema: type[Section], tree: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """What is wrong with a tree, by the path of its key: once per key, though a key of several types fails for each."""
    found: dict[KeyPath, list[str]] = {}
    for problem in _of_entries_alone(error.errors(include_url=False), schema):
        path = _key_path(problem["loc"], schema)
        value = problem["input"] if _is_entry(problem, path) else _value_at(path, tree)
        text = _text(problem, path, schema)
        texts = found.setdefault(path, [])
        if not text.startswith("wanted "):
            texts.append(text)
        elif not texts:
            texts.append(f"{text}, got {as_yaml(value)}")
        elif _is_entry(problem, path) and text in texts[-1]:
            texts[-1] += f" and {as_yaml(value)}"
        elif text not in texts[-1]:  # of another type that the key may have
            texts[-1] = texts[-1].replace(", got", f" or {text.removeprefix('wanted ')}, got", 1)
    for path, texts in found.items():
        yield path, "; ".join(texts)


def _of_entries_alone(problems: list[ErrorDetails], schema: type[Section]) -> Iterator[ErrorDetails]:
    """Without complaints that a list is too short that only say that entries were wrong."""
    wrong = {path for each in problems if _is_entry(each, path := _key_path(each["loc"], schema))}
    for each in problems:
        path = _key_path(each["loc"], schema)
        if _is_entry(each, path) or path not in wrong:
            yield each


def _is_entry(problem: ErrorDetails, path: KeyPath) -> bool:
    """Whether it is about one entry of the list at that path, which is there."""
    return problem["type"] != "missing" and any(isinstance(part, int) for part in problem["loc"][len(path) :])


def as_yaml(value: Any) -> str:
    """A value on one line, as it would stand in a file."""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
    )


def field_at(path: KeyPath, schema: type[Section]) -> FieldInfo | None:
    """The field of a key; None where the schema has none."""
    *sections, key = path or ("",)
    for name in sections:
        below = _section_at(name, schema)
        if below is None:
            return None
        schema = below
    return schema.model_fields.get(key)


def unknown_keys(tree: Mapping[str, Any], schema: type[Section], path: KeyPath = ()) -> Iterator[KeyPath]:
    """The keys of a tree that a schema has no field for; of a section that it does not know, the section alone."""
    for key, value in tree.items():
        here = (*path, str(key))
        if key not in schema.model_fields:
            yield here
        elif isinstance(value, Mapping) and (below := _section_at(key, schema)) is not None:
            yield from unknown_keys(value, below, here)


def _section_at(name: str, schema: type[Section]) -> type[Section] | None:
    found = schema.model_fields.get(name)
    annotation = found.annotation if found else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _key_path(location: tuple[int | str, ...], schema: type[Section]) -> KeyPath:
    """The part of pydantic's location that is a key: it goes on into list entries and the types of a union."""
    path: list[str] = []
    below: type[Section] | None = schema
    for part in location:
        if below is None:
            break
        path.append(str(part))
        below = _section_at(str(part), below)
    return tuple(path)


def _value_at(path: KeyPath, tree: Any) -> Any:
    for part in path:
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _text(problem: ErrorDetails, path: KeyPath, schema: type[Section]) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    inside = len(problem["loc"]) > len(path)  # of an entry of a list
    if kind == "extra_forbidden":
        return f"unknown key{_suggest(path, schema)}"
    if kind == "missing" and not inside and _section_at(path[-1], _schema_of(path, schema)) is not None:
        return f"missing; set its keys in a file or as {'.'.join(path)}.KEY=VALUE"
    if kind == "missing" and not inside:
        return f"missing; set it in a file or as {'.'.join(path)}=VALUE"
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    bounds = {"greater_than": "more than", "greater_than_equal": "at least", "less_than": "less than"}
    bounds |= {"less_than_equal": "at most"}
    if kind in bounds:
        return f"wanted {bounds[kind]} {next(iter(context.values())):g}"
    if kind == "literal_error":
        return f"wanted {context['expected']}"
    if kind == "finite_number":
        return "wanted a number that is finite"
    if kind == "string_too_short":
        return "wanted text that is not empty"
    if kind in ("too_short", "too_long"):
        few = kind == "too_short"
        return f"wanted {'at least' if few else 'at most'} {context['min_length' if few else 'max_length']} of them"
    if kind == "missing":
        return "wanted more of them"
    wanted = _WANTED.get(kind.partition("_")[0])
    if wanted is None:
        return f"wanted something else ({problem['msg']})"
    return f"wanted {wanted}"


def _schema_of(path: KeyPath, schema: type[Section]) -> type[Section]:
    """The section that a key stands in, as far as there are sections."""
    for name in path[:-1]:
        schema = _section_at(name, schema) or schema
    return schema


def _suggest(path: KeyPath, schema: type[Section]) -> str:
    schema = _schema_of(path, schema)
    near = difflib.get_close_matches(path[-1], schema.model_fields, n=1)
    return f", did you mean {near[0]!r}?" if near else f"; known here: {', '.join(schema.model_fields)}"
