"""Labels: a list, labels with synonyms, or a file of either; every mistake is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from t4p.config.files import changed_keys, dump_config, load_config
from t4p.config.network import NetworkConfig
from t4p.errors import ConfigError

MINIMAL = ("run.dir=a", "data.shards=[b]")
SYNONYMS = "{sofa: [sofa, couch, settee], chair: [chair, armchair], other furniture: [shelf]}"
WORDS = {"sofa": ("sofa", "couch", "settee"), "chair": ("chair", "armchair"), "other furniture": ("shelf",)}
ROOMS_CLIP = ("model.clip.name=configs/clip/small-rooms.json", "model.clip.pretrained=random")


def labels_of(value: str, *more: str) -> NetworkConfig:
    return load_config([], [*MINIMAL, f"model.labels={value}", *more]).model


def test_names_come_in_the_order_of_the_mapping_each_with_its_synonyms() -> None:
    model = labels_of(SYNONYMS)
    assert model.label_names == ("sofa", "chair", "other furniture")
    assert model.label_words == WORDS
    assert labels_of("[b, a]").label_words == {"b": ("b",), "a": ("a",)}


def test_labels_without_another_word_than_their_names_are_a_list_however_they_are_written() -> None:
    assert labels_of("{b: [b], a: [a]}") == labels_of("[b, a]")
    assert labels_of("{b: [b], a: [c]}").labels == {"b": ("b",), "a": ("c",)}


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_a_yaml_file_may_hold_the_mapping(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    path.write_text(SYNONYMS)
    assert labels_of(str(path)) == labels_of(SYNONYMS)


def test_a_dumped_mapping_loads_to_an_equal_one(tmp_path: Path) -> None:
    config = load_config([], [*MINIMAL, f"model.labels={SYNONYMS}"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    again = load_config([path])
    assert again == config
    assert again.model.label_names == config.model.label_names
    assert yaml.safe_load(path.read_text())["model"]["labels"]["sofa"] == ["sofa", "couch", "settee"]


def test_a_mapping_replaces_that_of_a_file_before_as_a_list_does(tmp_path: Path) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(f"model: {{labels: {SYNONYMS}}}")
    assert load_config([path], [*MINIMAL, "model.labels={bed: [bed, cot]}"]).model.label_words == {
        "bed": ("bed", "cot")
    }
    assert load_config([path], [*MINIMAL, "model.labels=[bed]"]).model.label_names == ("bed",)
    with pytest.raises(ConfigError, match=r"model.labels.bed=\[bed\]': labels are set as a whole"):
        load_config([path], [*MINIMAL, "model.labels.bed=[bed]"])


def test_another_order_of_labels_is_a_change_and_so_is_a_synonym() -> None:
    first, turned, other = (
        {"model": labels_of(text).model_dump(mode="json")}
        for text in ("{a: [a, b], c: [d]}", "{c: [d], a: [a, b]}", "{a: [a], c: [d]}")
    )
    assert [change.key for change in changed_keys(first, turned)] == ["model.labels"]
    assert [change.key for change in changed_keys(first, other)] == ["model.labels"]
    assert not list(changed_keys(first, first))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}", "model.labels: the list is empty; at least one label is wanted"),
        ("{a: [a], a: [b]}", "the key 'a' stands here twice"),
        ("{a: []}", r"a has no synonyms; give it one at least, which may be its name: a: \[a\]"),
        ("{a: [a, ' ']}", r"a has an empty synonym in \['a', ' '\]; take it out"),
        ("{a: [b, c, b]}", "a has twice: b"),
        ("{a: [x, y], b: [y], c: [c]}", "model.labels: y is a synonym of a and of b; leave it to one of them"),
        ("{a: [a, b], b: [c]}", "b is a label, and a synonym of a; leave it to one of them"),
        ("{a: [], b: [x], c: [x]}", "a has no synonyms; .*; x is a synonym of b and of c"),
        ("{' ': [a]}", "a label is empty in"),
        ("{a: b}", r"a has 'b', wanted a list of its synonyms, such as \{chair: \[chair, seat\]\}"),
        ("{a: [1]}", r"a has \[1\], wanted a list of its synonyms"),
    ],
)
def test_what_is_no_list_of_synonyms_is_told_in_one_message(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        labels_of(value)


def test_a_yaml_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    for text, found in (("[a, b]", "found a list"), ("a: b", "a has 'b', wanted a list"), ("a: [", "while parsing")):
        path.write_text(text)
        with pytest.raises(
            ConfigError, match=f"(?s){path} cannot be read .*{found}.*wanted a mapping of labels to lists"
        ):
            labels_of(str(path))


def test_synonyms_that_a_tower_of_few_words_has_never_read_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"model.labels: the text tower of .* was never trained with armchair, couch, s"
    ):
        labels_of("{chair: [chair, armchair], sofa: [sofa, a couch, settee]}", *ROOMS_CLIP)
    assert labels_of("{seat: [chair, stools, a sofa]}", *ROOMS_CLIP).label_names == ("seat",)
