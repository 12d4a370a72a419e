"""The floors of the house, and the order of the rooms of t4p: no import points upward, wherever it stands in a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("shards", "t4p", "launch", "commands")
# Rooms of one line are side by side: they do not import each other's line above, and may import each other.
ROOMS = (
    ("errors", "geometry", "metrics", "distributed", "heartbeat", "stop", "devices"),
    ("config",),
    ("data", "runs"),
    ("losses",),
    ("models",),
    ("train",),
    ("tasks",),
    ("plan",),
)
LINE_OF_ROOM = {room: line for line, rooms in enumerate(ROOMS) for room in rooms}

# Who may import what, anywhere in a file, inside functions too: each optional extra has one file, which names the extra
# where the package is missing.
IMPORTERS = {
    "MinkowskiEngine": {"t4p/models/sparse/minkowski.py"},
    "boto3": {"shards/stores/s3.py"},
    "botocore": {"shards/stores/s3.py"},
    "deepspeed": {"t4p/train/engine.py"},
    "huggingface_hub": {"t4p/models/hub.py"},
    "obstore": {"shards/stores/object_store.py"},
    "open_clip": {"t4p/models/clip_package.py"},
    "psutil": {"launch/processes/caretaker.py"},
    "ray": {"launch/ray_package.py"},
    "requests": {"launch/jobs/client.py"},  # comes with Ray
    "spconv": set(),
    "torch.utils.tensorboard": {"t4p/runs/logs.py"},
    "torchvision": set(),
    "webdataset": {"shards/slices.py"},
    # Not on Windows; each says what follows from that.
    "fcntl": {"shards/packing/scratch.py", "t4p/runs/lock.py"},
    "resource": set(),
}


def sources() -> list[Path]:
    return [file for package in FLOORS for file in sorted((ROOT / package).rglob("*.py"))]


def imports_in(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import statement of a file, wherever it stands, and of importlib calls."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            # `from t4p import train` imports a room too.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            yield from (
                (node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def points_upward(importer: tuple[str, ...], imported: str) -> bool:
    """Whether a file of these path parts below ROOT may not import that name."""
    package, *rest = imported.split(".")
    if package not in FLOORS:
        return False
    if package != importer[0]:
        return FLOORS.index(package) > FLOORS.index(importer[0])
    if package != "t4p" or importer[1] == "__init__.py":  # the public door stands before every room
        return False
    here = LINE_OF_ROOM[Path(importer[1]).stem]
    return not rest or LINE_OF_ROOM.get(rest[0], len(ROOMS)) > here


@pytest.mark.parametrize(
    ("importer", "imported", "upward"),
    [
        ("shards/schema.py", "t4p.errors", True),
        ("t4p/data/order.py", "shards.reader.DatasetReader", False),
        ("t4p/data/order.py", "t4p.models.clip", True),
        ("t4p/tasks/evaluate.py", "t4p.models.clip", False),
        ("t4p/errors.py", "t4p.config", True),
        ("t4p/data/order.py", "launch.errors", True),
        ("launch/driver.py", "commands.main", True),
        ("commands/main.py", "launch.training", False),
        ("t4p/runs/checkpoint.py", "torch.distributed", False),
        ("t4p/runs/checkpoint.py", "t4p.load", True),
    ],
)
def test_what_counts_as_upward(importer: str, imported: str, upward: bool) -> None:
    assert points_upward(Path(importer).parts, imported) is upward


def test_no_import_points_upward() -> None:
    offenders = [
        f"{file.relative_to(ROOT)}:{line}: {imported}"
        for file in sources()
        for line, imported in imports_in(file)
        if points_upward(file.relative_to(ROOT).parts, imported)
    ]
    assert offenders == []


def test_every_room_of_t4p_has_its_line() -> None:
    found = {path.stem for path in (ROOT / "t4p").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__"} == set(LINE_OF_ROOM)


@pytest.mark.parametrize("name", IMPORTERS)
def test_only_its_own_file_imports(name: str) -> None:
    importers = {
        str(file.relative_to(ROOT))
        for file in sources()
        if any(f"{imported}.".startswith(f"{name}.") for _, imported in imports_in(file))
    }
    assert importers == IMPORTERS[name]
