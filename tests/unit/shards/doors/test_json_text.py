"""JSON is bounded before it is parsed, and every number in it is finite."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.doors.json_text import JsonError, parse_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=40,
)


@given(VALUES, st.booleans())
def test_what_json_writes_is_read_back(value: Any, as_bytes: bool) -> None:
    text = json.dumps(value)
    assert parse_json(text.encode() if as_bytes else text, max_depth=64) == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 200_000, "more than 32 deep, at character 32"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "more than 32 deep"),
        (b"[NaN]", "NaN is no number of JSON"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"[1e999]", "the number 1e999 is not finite"),
        (b"[-1e400]", "not finite"),
        (b"9" * 5000, r"the number 9{40}\.\.\. \(4960 more characters\) is beyond 64 bits"),
        (b"1" + b"0" * 400, "beyond 64 bits"),
        (b"18446744073709551616", "beyond 64 bits"),
        (b"\xff", "not UTF-8"),
        (b"", "no JSON"),
        (b'{"a" 1}', "no JSON: Expecting ':'"),
        (b'"' + b"x" * 100 + b'"', "102 bytes of JSON, wanted at most 100"),
    ],
)
def test_what_is_refused_is_told(data: bytes, message: str) -> None:
    with pytest.raises(JsonError, match=message):
        parse_json(data, max_bytes=100 if b"xx" in data else 1 << 20)


def test_brackets_in_texts_are_not_depth() -> None:
    text = json.dumps({"a": "[" * 100 + '\\"[{' * 50, "b": [1, "]" * 100]})
    assert parse_json(text) == json.loads(text)
    assert parse_json("[" + "[[1]]," * 500 + "[]]")[0] == [[1]]


def test_numbers_keep_every_bit() -> None:
    assert parse_json("[0.1, 1e-320, 18446744073709551615, -0.0]") == [0.1, 1e-320, 2**64 - 1, 0.0]
    assert math.copysign(1, parse_json("-0.0")) == -1
