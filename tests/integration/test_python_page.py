"""docs/python.md: every snippet runs in a fresh interpreter, and loads what the page says it does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import t4p

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / "tests" / "data" / "older"
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^## t4p\.([\w.]+)\n\n```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL))
LOADS = dict(re.findall(r"^\| \[`t4p\.([\w.]+)`\].*\| (.*) \|$", PAGE, flags=re.MULTILINE))
SCORES = ("metrics.detection", "metrics.instance", "metrics.semantic")  # modules, to be used alone
# What costs a second or a hundred megabytes, or belongs to an extra; and what people ask about.
HEAVY = (
    "numpy",
    "torch",
    "pydantic",
    "torchvision",
    "deepspeed",
    "open_clip",
    "ray",
    "boto3",
    "webdataset",
    "matplotlib",
)
REPORT = "\nimport json, sys\nprint(json.dumps([name for name in {heavy} if name in sys.modules]))\n"


def test_the_page_has_every_name_once() -> None:
    assert sorted(SNIPPETS) == sorted(LOADS) == sorted([*t4p.__all__, *SCORES])
    assert PAGE.count("```python") == len(SNIPPETS)


@pytest.mark.parametrize("name", SNIPPETS)
def test_a_snippet_runs_and_loads_what_the_page_says(name: str, tmp_path: Path, clean_environ: dict[str, str]) -> None:
    (tmp_path / "rooms").symlink_to(OLDER / "frames")
    (tmp_path / "model.safetensors").symlink_to(OLDER / "pretrain.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", SNIPPETS[name] + REPORT.format(heavy=HEAVY)],
        cwd=tmp_path,
        env=clean_environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == LOADS[name].split(", ")
