"""How every page is made: from a template that escapes whatever it is given, into one file that loads nothing.

A page is opened from a disk or a mail by people who did not make the data in it, so its own policy forbids the browser
every load and every script but, where it has one, the page's own; style sheet and script are allowed by their hashes,
pictures stand inside as data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, data: Mapping[str, Any], scripts: Sequence[str] = (), **values: Any) -> str:
    """A page.

    Args:
        template: a file of `templates/` that extends base.html.
        data: what stands in the page for programs, in `<script type="application/json" id="data">`.
        scripts: files of `templates/` that run as one when the page has been read; none runs otherwise.
        values: what the template shows. Text is escaped, whatever is in it.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    code = "\n".join((TEMPLATES / script).read_text(encoding="utf-8") for script in scripts)
    allowed = f" script-src {_source_of(code)};" if code else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source_of(style)};{allowed} "
        "base-uri 'none'; form-action 'none'"
    )
    page = (
        _environment()
        .get_template(template)
        .render(policy=policy, style=Markup(style), script=Markup(code), data=json_element(data), **values)
    )
    # An id keeps the bytes of a file name that is not UTF-8, as halves of characters: spelled out, as JSON does too.
    return page.encode("utf-8", "backslashreplace").decode("utf-8")


def _source_of(text: str) -> str:
    """What a policy allows an element with this text by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def json_element(data: Mapping[str, Any] | Sequence[Any]) -> Markup:
    """JSON that can stand in a script element: no `<` in it, and null for what is not finite."""
    text = json.dumps(_finite(data), allow_nan=False, ensure_ascii=False)
    for letter in "<>&\u2028\u2029":  # the last two end a line in a script, and none in JSON
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def prose(text: str) -> Markup:
    """Escaped text, in which what stands between two backticks is code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:  # one has no partner
        return escape(text)
    marked = (
        Markup("<code>{}</code>").format(piece) if place % 2 else escape(piece) for place, piece in enumerate(pieces)
    )
    return Markup("").join(marked)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    return environment
