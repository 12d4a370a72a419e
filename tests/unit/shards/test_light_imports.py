"""Reading and packing start fast: nothing heavy is loaded before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

import shards

HEAVY = ("torch", "torchvision", "webdataset", "matplotlib", "ray", "deepspeed", "t4p", "launch", "scipy")
MODULES = sorted(
    ".".join(("shards", *path.relative_to(Path(shards.__path__[0])).with_suffix("").parts))
    for path in Path(shards.__path__[0]).rglob("*.py")
    if path.name != "__init__.py"
)


def test_all_modules_are_found() -> None:
    assert {"shards.cli", "shards.pack", "shards.verify", "shards.sources.tum"} <= set(MODULES)


def test_no_module_loads_anything_heavy(clean_environ: dict[str, str]) -> None:
    script = f"import sys, importlib; [importlib.import_module(name) for name in {MODULES}]; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], env=clean_environ, text=True, capture_output=True, check=True
    )
    assert not set(result.stdout.split()) & set(HEAVY)


@pytest.mark.parametrize("name", ["shards.cli", "shards.schema", "shards.manifest"])
def test_light_modules_do_not_load_boto3(clean_environ: dict[str, str], name: str) -> None:
    script = f"import sys, {name}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", script], env=clean_environ, text=True, capture_output=True, check=True
    )
    assert "boto3" not in result.stdout.split()
