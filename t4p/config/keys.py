"""Every key of a configuration with its type, default and meaning, read off the schemas: `t4p config keys`."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from t4p.config.data import WeightedPlace
from t4p.config.section import Section
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError

_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text", WeightedPlace: "{url, weight}"}
_BOUNDS = ((Gt, "gt", "above"), (Ge, "ge", "at least"), (Lt, "lt", "below"), (Le, "le", "at most"))


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: dotted, as on a command line.
        type: in the words of YAML.
        default: as it would stand in a file; None where a configuration must give the key.
        meaning: what it does, with the unit.
    """

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class KeySection:
    """The keys of one section, without those of the sections in it.

    Attributes:
        name: dotted; "" for keys outside of every section.
        meaning: of the whole.
    """

    name: str
    meaning: str
    keys: tuple[Key, ...]


def sections_of(schema: type[Section], below: str = "") -> tuple[KeySection, ...]:
    """The sections of a schema, in the order of a configuration, those without keys of their own left out.

    Args:
        below: only this section and those in it, or the one key of this name.

    Raises:
        ConfigError: there is no such section or key.
    """
    found = [section for section in _walk(schema, "") if section.keys]
    if not below:
        return tuple(found)
    inside = [section for section in found if section.name == below or section.name.startswith(f"{below}.")]
    if inside:
        return tuple(inside)
    for section in found:
        if keys := tuple(key for key in section.keys if key.name == below):
            return (KeySection(section.name, section.meaning, keys),)
    names = list(dict.fromkeys(name for s in found for name in (s.name, *(key.name for key in s.keys)) if name))
    near = difflib.get_close_matches(below, names, n=3)
    sections = ", ".join(section.name for section in found if section.name)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the sections are {sections}"
    raise ConfigError(f"{below}: no section or key of this configuration; {hint}")


def page_of(schemas: Mapping[str, type[Section]]) -> str:
    """docs/configuration.md: every key of these schemas. A training job after the first is told by how it differs.

    Args:
        schemas: by their headings.
    """
    lines = [*_PREFACE]
    first: dict[str, Key] = {}
    for heading, schema in schemas.items():
        sections = sections_of(schema)
        lines += ["", f"## {heading}"]
        alike = first if issubclass(schema, JobConfig) else {}
        if alike:
            here = {key.name for section in sections for key in section.keys}
            lines += ["", f"As the first, without {', '.join(f'`{name}`' for name in alike if name not in here)}; and:"]
        for section in sections:
            keys = [key for key in section.keys if alike.get(key.name) != key]
            if keys:
                lines += ["", f"### {section.name or 'In no section'}", ""]
                lines += [section.meaning, ""] if section.meaning else []
                lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
                lines += [
                    f"| `{key.name}` | {_cell(key.type)} | {_default_cell(key.default)} | {_cell(key.meaning)} |"
                    for key in keys
                ]
        first = first or {key.name: key for section in sections for key in section.keys}
    return "\n".join(lines) + "\n"


_PREFACE = (
    "# Configuration",
    "",
    "Every key that a configuration may hold. YAML files merge left to right, `section.key=value` on the command line",
    "comes last, and unknown keys are errors. `t4p config keys SECTION` says the same in a terminal, and",
    "`t4p config show FILES... [key=value]` what a run would use, with every problem that it has.",
    "",
    "This page is made from the schemas: `t4p config keys --markdown > docs/configuration.md`.",
)


def _walk(schema: type[BaseModel], name: str, meaning: str = "") -> Iterator[KeySection]:
    prefix = f"{name}." if name else ""
    keys = [
        Key(f"{prefix}{field_name}", _type_of(field), _default_of(field), field.description or "")
        for field_name, field in schema.model_fields.items()
        if _section_in(field) is None
    ]
    own = " ".join((schema.__doc__ or "").split()) if schema.__doc__ != Section.__doc__ else ""
    yield KeySection(name, meaning or (own if name else ""), tuple(keys))
    for field_name, field in schema.model_fields.items():
        if (section := _section_in(field)) is not None:
            yield from _walk(section, f"{prefix}{field_name}", field.description or "")


def _section_in(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _default_of(field: FieldInfo) -> str | None:
    if field.is_required():
        return None
    value = field.get_default(call_default_factory=True)
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=100_000)
    return text.removesuffix("...\n").strip()


def _type_of(field: FieldInfo) -> str:
    return _in_words(field.annotation, field.metadata)


def _in_words(annotation: Any, metadata: list[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *own = arguments
        constraints = [part for item in own for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
        return _in_words(inner, [*constraints, *metadata])
    if origin is Literal:
        return " or ".join(str(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        kinds = [_in_words(part, metadata) for part in arguments if part is not type(None)]
        return " or ".join([*kinds, "null"] if type(None) in arguments else kinds)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            least = any(isinstance(item, MinLen) and item.min_length for item in metadata)
            return f"list{' (not empty)' if least else ''} of: {_in_words(arguments[0], [])}"
        return f"list of {len(arguments)}: {', '.join(_in_words(part, []) for part in arguments)}"
    if origin is dict:
        return f"mapping of {' to '.join(_in_words(part, []) for part in arguments)}"
    bounds = [
        f"{words} {getattr(item, name):g}"
        for item in metadata
        for kind, name, words in _BOUNDS
        if isinstance(item, kind) and abs(getattr(item, name)) < 2**53  # 2^63 is no bound that anybody meets
    ]
    return f"{_WORDS.get(annotation, getattr(annotation, '__name__', str(annotation)))} {' and '.join(bounds)}".strip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default_cell(default: str | None) -> str:
    return "must be given" if default is None else f"`{_cell(default)}`" if default != "''" else ""
