"""What `model.labels` may be, as one kind of value: names in order, some of them with synonyms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from shards.doors.files import read_file
from t4p.config.packaged import find_packaged
from t4p.config.section import Problem
from t4p.config.yaml_text import MAX_CHARACTERS, parse_yaml
from t4p.errors import ConfigError

# Names alone, or each with the words and phrases whose mean embedding is its own.
Labels = tuple[str, ...] | dict[str, tuple[str, ...]]

# The 20 classes of ScanNet's semantic benchmark, in the order of its evaluation script.
SCANNET_LABELS = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "desk", "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub",
    "other furniture",
)  # fmt: skip

_YAML = (".yaml", ".yml")


def words_of(labels: Labels) -> dict[str, tuple[str, ...]]:
    """The synonyms of every label, in the order of the labels; a name without any is its own."""
    return dict(labels) if isinstance(labels, Mapping) else {name: (name,) for name in labels}


def labels_with_synonyms(tree: Mapping[Any, Any]) -> Labels:
    """A mapping as YAML has it. Where every label has no word but its name, that is a list of names, and becomes one.

    Raises:
        ValueError: an entry is no name with a list of words.
    """
    for name, words in tree.items():
        if not isinstance(name, str):
            raise ValueError(f"the label {name!r} is no text; put quotes around it")
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"{name} has {words!r}, wanted a list of its synonyms, such as {{chair: [chair, seat]}}")
    labels = {name: tuple(words) for name, words in tree.items()}
    return tuple(labels) if all(words == (name,) for name, words in labels.items()) else labels


def read_labels(path: str) -> Labels:
    """Read a file of labels: one a line, or, of YAML, a mapping of labels to lists of synonyms.

    Raises:
        ConfigError: it is not there, cannot be read or holds something else.
    """
    found = find_packaged(path)
    is_yaml = found.suffix in _YAML
    wanted = "a mapping of labels to lists of synonyms" if is_yaml else "a UTF-8 text file with one label per line"
    try:
        text = read_file(found, MAX_CHARACTERS).decode("utf-8")
        tree = parse_yaml(text) if is_yaml else None
        if is_yaml and not isinstance(tree, Mapping):
            raise ValueError(f"found a {type(tree).__name__}")
        if isinstance(tree, Mapping):
            return labels_with_synonyms(tree)
    except (OSError, ValueError) as error:  # a YamlError and a UnicodeDecodeError are ValueErrors
        raise ConfigError(f"{found} cannot be read ({error}); wanted {wanted}") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def problems_of_labels(labels: Labels | str) -> Iterator[Problem]:
    """What is wrong with labels; a file of them is read by the loader."""
    if isinstance(labels, str):
        if not labels.strip():
            yield Problem(("labels",), "the name of the file is empty; give a list, or a file with one label per line")
        return
    if not labels:
        yield Problem(("labels",), "the list is empty; at least one label is wanted")
    if any(not label.strip() for label in labels):
        yield Problem(("labels",), f"a label is empty in {list(labels)}; take it out, or give it a name")
    if isinstance(labels, Mapping):
        if text := "; ".join(_problems_of_synonyms(labels)):
            yield Problem(("labels",), text)
    elif doubles := sorted(name for name, count in Counter(labels).items() if count > 1):
        yield Problem(("labels",), f"named twice: {', '.join(doubles)}")


def _problems_of_synonyms(labels: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for name, words in labels.items():
        if not words:
            yield f"{name} has no synonyms; give it one at least, which may be its name: {name}: [{name}]"
        if any(not word.strip() for word in words):
            yield f"{name} has an empty synonym in {list(words)}; take it out"
        if doubles := sorted(word for word, count in Counter(words).items() if count > 1):
            yield f"{name} has twice: {', '.join(doubles)}"
    owners: dict[str, list[str]] = {}
    for name, words in labels.items():
        for word in dict.fromkeys(words):
            owners.setdefault(word, []).append(name)
    for word, names in owners.items():
        if len(names) > 1:
            yield f"{word} is a synonym of {' and of '.join(names)}; leave it to one of them"
        elif word in labels and word != names[0]:
            yield f"{word} is a label, and a synonym of {names[0]}; leave it to one of them"
