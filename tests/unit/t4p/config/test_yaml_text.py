"""YAML is bounded before it is built: hostile files are refused in words, in no time, with no memory."""

import time
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from t4p.config.files import load_config
from t4p.config.yaml_text import YamlError, parse_yaml
from t4p.errors import ConfigError


def laughs(levels: int, width: int, opening: str, closing: str) -> str:
    """Each line stands for `width` times what the line before stands for."""
    lines = ["a0: &a0 [lol]"]
    for level in range(1, levels):
        entries = ", ".join(f"k{i}: *a{level - 1}" if opening == "{" else f"*a{level - 1}" for i in range(width))
        lines.append(f"a{level}: &a{level} {opening}{entries}{closing}")
    return "\n".join(lines)


def merges(levels: int, width: int) -> str:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}], y{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "python object": ("run: !!python/object/apply:os.system ['touch PWNED']", "could not determine a constructor"),
    "python name": ("run: {dir: !!python/name:os.system }", "could not determine a constructor"),
    "laughs in lists": (laughs(9, 9, "[", "]"), r"aliases \(\*\) stand for \d{9} values, wanted at most 100000"),
    "laughs in mappings": (laughs(9, 9, "{", "}"), "wanted at most 100000; write them out"),
    "laughs of 7 levels": (laughs(7, 9, "{", "}"), "wanted at most 100000"),
    "merges in merges": (merges(9, 9), "wanted at most 100000"),
    "an alias in itself": ("run: &a {dir: x, y: *a}", "stands inside of what its anchor"),
    "a list in itself": ("data: {shards: &a [*a]}", "stands inside of what its anchor"),
    "a merge of itself": ("run: &a {<<: *a}", "stands inside of what its anchor"),
    "deep lists": ("run: " + "[" * 20_000 + "]" * 20_000, "more than 64 levels, in line 1"),
    "deep mappings": ("run: " + "{a: " * 3000 + "1" + "}" * 3000, "more than 64 levels"),
    "deep blocks": ("\n".join(" " * n + f"a{n}:" for n in range(200)), "more than 64 levels, in line 65"),
    "deep and not closed": ("[" * 100_000, "more than 64 levels"),
    "bytes": ("\x00\x01\x02", "not valid YAML: unacceptable character #x0000"),
    "a huge number": ("train: {num_steps: " + "9" * 100_000 + "}", "not valid YAML: Exceeds the limit"),
    "a date that is none": ("run: {dir: 2020-99-99}", "not valid YAML: month must be in 1..12"),
    "a truth that is none": ("run: {dir: !!bool maybe}", "before a value of another kind"),
    "a time that is none": ("run: {dir: !!timestamp noon}", "before a value of another kind"),
    "an empty number": ("train: {num_steps: !!int ''}", "before a value of another kind"),
    "a number without digits": ("train: {learning_rate: !!float '_'}", "before a value of another kind"),
    "binary that is none": ("run: {dir: !!binary 'a'}", "not valid YAML"),
    "a name with NUL": ('run: {dir: "a\\0b"}', r"'a\\x00b' holds a control character, in line 1"),
    "a key that colours": ('run:\n  "\\e[31mred\\e]0;OWNED\\a": 1', r"'\\x1b\[31mred.*control character, in line 2"),
    "too long": ("a: " + "x" * (1 << 20), "more than 1048576 characters of YAML"),
    "a merge": ("a: &a {x: 1}\nrun: {<<: [" + ", ".join(["*a"] * 1000) + "]}", "a merge .* is not read here"),
    "a number for a key": ("run: {1: 2}", "the key 1 is no text"),
    "a list for a key": ("{run}: [1]\n? [a]\n: 1", "no text|where a key is wanted"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_words(name, tmp_path):
    text, message = HOSTILE[name]
    (tmp_path / "hostile.yaml").write_text(text)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(ConfigError, match=message) as refused:
            load_config([tmp_path / "hostile.yaml"])
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 5
    assert str(refused.value).startswith(str(tmp_path / "hostile.yaml"))
    assert len(str(refused.value)) < 1000
    assert not any(letter in str(refused.value) for letter in "\x1b\x00\x07")


@pytest.mark.parametrize("text", [each for name, (each, _) in HOSTILE.items() if "number for" not in name])
def test_the_value_of_an_override_comes_in_by_the_same_door(text):
    with pytest.raises(YamlError):
        parse_yaml(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("abc: -#'\"é\n", max_size=10),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text("abcö", min_size=1), below, max_size=4),
    max_leaves=30,
)


@given(VALUES)
def test_what_yaml_writes_is_read_back(value):
    assert parse_yaml(yaml.safe_dump(value, allow_unicode=True)) == yaml.safe_load(yaml.safe_dump(value))


def test_aliases_of_a_sensible_size_stay():
    text = "base: &base {a: 1, b: [2]}\nrun: *base\nlist: [*base, *base]\n"
    assert parse_yaml(text) == yaml.safe_load(text)
