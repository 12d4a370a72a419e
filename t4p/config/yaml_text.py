"""The one way in for YAML: bounded in size, depth and in what its aliases stand for; every key a text, and once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from shards.doors.text import has_control, shown

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 64
MAX_VALUES = 100_000  # with every alias written out


class YamlError(ValueError):
    """Text that is no YAML, or not of the kind that is read here; says what is wrong and where in it."""


def parse_yaml(text: str) -> Any:
    """The value that `text` spells.

    Raises:
        YamlError: too long, too deep, larger than it looks, malformed, or with a key that is no text or stands twice.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(f"more than {MAX_CHARACTERS} characters of YAML")
    try:
        _check_depth(text)  # what follows recurses
        loader = _StrictLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if (count := _count(node, {}, set())) > MAX_VALUES:
                raise YamlError(
                    f"its aliases (*) stand for {count} values, wanted at most {MAX_VALUES}; write them out"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise YamlError(f"not valid YAML: {error}") from error
    except YamlError:
        raise
    except (LookupError, AttributeError) as error:  # PyYAML's, where a tag asks for a number, a truth or a time
        raise YamlError("not valid YAML: a tag (!!) stands before a value of another kind; leave it out") from error
    except (ValueError, OverflowError) as error:  # of numbers, dates and times that there are none of
        raise YamlError(f"not valid YAML: {shown(error)}") from error


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(f"more than {MAX_DEPTH} levels, in line {_line(event)}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and (
            has_control(event.value.translate(_WHITE)) or "\0" in event.value
        ):
            raise YamlError(f"'{shown(event.value, 40)}' holds a control character, in line {_line(event)}")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark is not None else 0


_WHITE = {ord(letter): None for letter in "\t\n\r"}


def _count(node: yaml.Node, counts: dict[int, int], around: set[int]) -> int:
    """Values in a node with every alias written out; each node is looked at once."""
    if id(node) in around:
        raise YamlError("an alias (*) stands inside of what its anchor (&) names; write the value out")
    if id(node) not in counts:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        around.add(id(node))
        counts[id(node)] = 1 + sum(_count(each, counts, around) for each in below)
        around.remove(id(node))
    return counts[id(node)]


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here that is an error, and so is a key of many parts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _at(key_node, "a merge (<<) is not read here; write the keys out")
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise _at(
                    key_node,
                    f"{key!r} stands where a key is wanted; put quotes around a value that begins with a bracket",
                )
            if not isinstance(key, str):  # YAML 1.1 reads on, off, yes and no as true and false
                raise _at(key_node, f"the key {key!r} is no text; put quotes around it")
            if key in seen:
                raise _at(key_node, f"the key {key!r} stands here twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _at(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
