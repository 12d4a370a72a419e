"""`t4p config keys`: every key of every schema, in the words of a file; the page of keys is what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from commands.config import schemas_by_heading
from t4p.config.files import dump_config, load_config
from t4p.config.keys import Key, page_of, sections_of
from t4p.config.section import Fraction, PositiveInt, Section
from t4p.config.tasks import PretrainConfig
from t4p.errors import ConfigError

ROOT = Path(__file__).resolve().parents[4]


class Inner(Section):
    """What is inside."""

    share: Fraction = Field(0.5, description="Of it.")
    sizes: tuple[PositiveInt, ...] | None = Field(None, description="Of each.")


class Outer(Section):
    kind: Literal["a", "b"] = Field("a", description="Which.")
    names: tuple[str, ...] = Field(min_length=1, description="Of all.")
    pair: tuple[int, Annotated[float, Field(gt=0, lt=2)]] = Field((1, 1.5), description="Two.")
    flag: bool = Field(False, description="Or not.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of all draws.")
    inner: Inner = Inner()


def test_keys_are_told_in_the_words_of_a_file() -> None:
    outside, inner = sections_of(Outer)
    assert (outside.name, inner.name, inner.meaning) == ("", "inner", "What is inside.")
    assert outside.keys == (
        Key("kind", "a or b", "a", "Which."),
        Key("names", "list (not empty) of: text", None, "Of all."),
        Key("pair", "list of 2: whole number, number above 0 and below 2", "[1, 1.5]", "Two."),
        Key("flag", "true or false", "false", "Or not."),
        Key("seed", "whole number at least 0", "0", "Of all draws."),
    )
    assert inner.keys == (
        Key("inner.share", "number at least 0 and at most 1", "0.5", "Of it."),
        Key("inner.sizes", "list of: whole number above 0 or null", "null", "Of each."),
    )


def test_every_key_of_every_configuration_has_a_meaning() -> None:
    dumb = [
        f"{heading}: {key.name}"
        for heading, schema in schemas_by_heading().items()
        for section in sections_of(schema)
        for key in section.keys
        if not key.meaning
    ]
    assert dumb == [], "give these fields a description"


def test_the_keys_are_those_of_a_resolved_configuration_with_its_defaults() -> None:
    tree = yaml.safe_load(dump_config(load_config([], ["data.shards=[x]", "run.dir=y"])))
    for section in sections_of(PretrainConfig):
        for key in section.keys:
            value = tree
            for name in key.name.split("."):
                value = value[name]
            if key.default is not None:
                assert value == yaml.safe_load(key.default), key.name
    names = [key.name for section in sections_of(PretrainConfig) for key in section.keys]
    assert sorted(names) == sorted(leaves(tree))


def leaves(tree: dict, prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return found


def test_a_section_is_shown_with_those_in_it_and_a_key_alone() -> None:
    assert [section.name for section in sections_of(PretrainConfig, "data.augment")] == ["data.augment"]
    names = [section.name for section in sections_of(PretrainConfig, "data")]
    assert names == ["data", "data.augment", "data.drop_features"]
    (section,) = sections_of(PretrainConfig, "train.num_steps")
    assert [key.name for key in section.keys] == ["train.num_steps"]


@pytest.mark.parametrize(
    ("below", "hint"), [("trian", "did you mean train?"), ("xyz", "the sections are run, data"), ("dat", "data?")]
)
def test_what_is_no_section_is_refused_with_a_hint(below: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"{below}: no section or key") as caught:
        sections_of(PretrainConfig, below)
    assert hint in str(caught.value)


def test_the_page_of_keys_is_what_the_schemas_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == page_of(schemas_by_heading()), (
        "docs/configuration.md is not what the schemas say any more; make it again with "
        "`.venv/bin/t4p config keys --markdown > docs/configuration.md`"
    )
