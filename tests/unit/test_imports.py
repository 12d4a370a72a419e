"""What each module loads, in fresh interpreters: what only looks at arguments and files stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from t4p.config.kinds import TASKS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "deepspeed", "open_clip", "ray", "webdataset", "MinkowskiEngine", "matplotlib")
# Modules that must stay light one by one; `/` at the end: every module of a package.
LIGHT = (
    "commands/",
    "launch/",
    "shards/",
    "t4p",
    "t4p.config/",
    "t4p.data.draws",
    "t4p.data.fetch",
    "t4p.data.order",
    "t4p.errors",
    "t4p.geometry",
    "t4p.metrics.semantic",
)

# Imports one module after the other, and says which of them brought something heavy.
REPORT = """
import importlib, sys
heavy = set(sys.argv[1].split(","))
for module in sys.argv[2:]:
    before = heavy & sys.modules.keys()
    importlib.import_module(module)
    for name in sorted((heavy & sys.modules.keys()) - before):
        print(f"{module} loads {name}")
"""


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def loaded_by(modules: list[str], heavy: tuple[str, ...]) -> list[str]:
    """`MODULE loads NAME`, for each of the heavy names that importing these modules in turn loads."""
    done = subprocess.run(
        [sys.executable, "-c", REPORT, ",".join(heavy), *modules], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_light_modules_load_nothing_heavy() -> None:
    modules = [
        module
        for name in LIGHT
        for module in (modules_of(name[:-1].replace(".", "/")) if name.endswith("/") else [name])
    ]
    assert loaded_by(modules, HEAVY) == []


def test_learning_code_loads_neither_ray_nor_the_floors_above() -> None:
    # The file of an optional package is loaded only where that is wanted.
    modules = [module for module in modules_of("t4p") if module != "t4p.models.sparse.minkowski"]
    assert loaded_by(modules, ("ray", "launch", "commands")) == []


def test_evaluation_needs_neither_deepspeed_nor_clip() -> None:
    tasks = [task.module for task in TASKS.values()]
    not_needed = ("deepspeed", "open_clip", "torchvision", "boto3", "webdataset")
    assert loaded_by(["t4p.tasks.evaluate", *tasks], not_needed) == []
