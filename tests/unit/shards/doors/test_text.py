"""Nothing that comes out of data acts on a terminal or a log."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.doors.text import MAX_SHOWN, has_control, shown, shown_message
from shards.errors import CallError, ShardError
from shards.stores.store import FaultError


@given(st.text(st.characters(), max_size=400))
def test_what_is_shown_is_one_printable_line_of_bounded_length(text: str) -> None:
    line = shown(text)
    assert line.isprintable()
    assert len(line) <= 10 * MAX_SHOWN + 40
    line.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("kitchen/0001 Küche 椅子", "kitchen/0001 Küche 椅子"),
        ("a\x1b[31mRED\x1b]0;OWNED\x07", r"a\x1b[31mRED\x1b]0;OWNED\x07"),
        ("a\nerror: forged", r"a\nerror: forged"),
        ("a\u202egnp.x", r"a\u202egnp.x"),
        ("\udcff", r"\udcff"),
        ("x" * 201, "x" * 200 + "... (1 more characters)"),
    ],
)
def test_names_are_spelled_out_and_cut(text: str, wanted: str) -> None:
    assert shown(text) == wanted


def test_a_message_keeps_its_lines_and_every_error_is_one() -> None:
    assert shown_message("two\n  lines\x1b[2J") == "two\n  lines\\x1b[2J"
    assert shown_message("\n" * 1000).count("\n") == 300
    for error in (ShardError("a\x1bb"), CallError("a\x1bb"), FaultError("a\x1bb", "503")):
        assert str(error) == str(pickle.loads(pickle.dumps(error))) == "a\\x1bb"
    assert [has_control(text) for text in ("a b", "é", "a\tb", "a\0", "\x9b31m")] == [False, False, True, True, True]
