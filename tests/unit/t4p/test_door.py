"""The public door: `import t4p` loads nothing, and its names are there when they are asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import t4p

ROOT = Path(__file__).resolve().parents[3]


def test_the_door_loads_nothing_but_itself() -> None:
    script = (
        "import sys; before = set(sys.modules); import t4p; dir(t4p); new = set(sys.modules) - before;"
        "print(sorted(m for m in new if m.partition('.')[0] not in "
        "sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['t4p']"


def test_every_name_of_the_door_can_be_had() -> None:
    for name in t4p.__all__:
        assert hasattr(t4p, name)
        assert name in dir(t4p)
        assert callable(getattr(t4p, name))
        assert getattr(t4p, name).__doc__


def test_another_name_is_an_attribute_error_that_says_what_there_is() -> None:
    assert not hasattr(t4p, "loads")
    with pytest.raises(AttributeError, match="no attribute 'loads'; it has contrastive_loss, frames, load"):
        t4p.loads  # noqa: B018


def test_types_are_shipped() -> None:
    assert (Path(t4p.__file__).parent / "py.typed").exists()
