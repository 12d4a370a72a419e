"""Text that comes out of data, made fit to print: keys, ids, labels, names of files."""

from __future__ import annotations

MAX_SHOWN = 200  # of one name
_MAX_LINE = 2_000  # of a message, which may hold several names
_MAX_LINES = 300


def shown(text: object, limit: int = MAX_SHOWN) -> str:
    """`text` on one line: whatever a terminal or a log would act on is spelled out, what is too long is cut.

    Control characters, newlines and marks that turn the direction of writing would move the cursor, colour the screen,
    name the window, or forge a line of the log.
    """
    value = str(text)
    rest = len(value) - limit
    value = "".join(map(_printable, value[:limit]))
    return f"{value}... ({rest} more characters)" if rest > 0 else value


def shown_message(message: str) -> str:
    """A message of several lines, each of them as `shown`."""
    lines = message.split("\n")
    rest = len(lines) - _MAX_LINES
    clean = [shown(line, _MAX_LINE) for line in lines[:_MAX_LINES]]
    return "\n".join([*clean, f"... ({rest} more lines)"] if rest > 0 else clean)


def has_control(text: str) -> bool:
    """Whether a terminal or a file system would act on some character of `text`: none of a name, a label or a path."""
    return any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)


def _printable(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
