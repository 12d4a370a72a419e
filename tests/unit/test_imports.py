"""What each package may load, checked in fresh interpreters and in the source: the rules of the house, not of ruff."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("shards", "t4p", "launch")
HEAVY = ("torch", "torchvision", "deepspeed", "open_clip", "ray", "webdataset", "MinkowskiEngine", "matplotlib")

# Modules of t4p that must stay light: they run where a command only looks at its arguments.
LIGHT = (
    "t4p.cli",
    "t4p.cli_arguments",
    "t4p.config",
    "t4p.config_files",
    "t4p.errors",
    "t4p.geometry",
    "t4p.data.draws",
    "t4p.data.fetch",
    "t4p.data.order",
    "launch.cli",
    "launch.doctor",
    "launch.doctor_finding",
    "launch.doctor_fixes",
    "launch.doctor_probes",
    "launch.doctor_report",
    "launch.doctor_storage",
    "launch.environment",
    "launch.errors",
    "launch.job_client",
    "launch.job_source",
    "launch.job_spec",
    "launch.job_versions",
    "launch.jobs",
    "launch.outcome",
    "launch.placement",
    "launch.private_folder",
    "launch.private_ray",
    "launch.processes",
    "launch.progress",
    "launch.line_chart",
    "launch.quickstart",
    "launch.quickstart_page",
    "launch.quickstart_report",
    "launch.quickstart_rooms",
    "launch.quickstart_stages",
    "launch.ray_driver",
    "launch.scene_view",
    "launch.side_by_side",
    "launch.stop_signals",
    "launch.trainer",
    "launch.worker_group",
)

# Who may import what, anywhere in a file, inside functions too.
IMPORTERS = {
    "deepspeed": {"t4p/train/engine.py"},
    "MinkowskiEngine": {"t4p/models/sparse/minkowski.py"},
    "boto3": {"shards/store.py"},
    "botocore": {"shards/store.py"},
    "ray": {"launch/job_client.py", "launch/ray_driver.py"},
}

REPORT = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def modules_of(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    parts = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]


def sources() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def loaded_by(modules: list[str]) -> dict[str, set[str]]:
    """Top-level names in sys.modules after importing each module alone: fresh interpreters, a few at a time."""
    loaded = {}
    pending = list(modules)
    while pending:
        group, pending = pending[:4], pending[4:]
        running = [
            (
                module,
                subprocess.Popen([sys.executable, "-c", REPORT, module], cwd=ROOT, stdout=-1, stderr=-1, text=True),
            )
            for module in group
        ]
        for module, process in running:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, f"import {module} fails:\n{err}"
            loaded[module] = set(out.split())
    return loaded


def imports_in(file: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of every import statement of a file, wherever it stands, and of importlib calls."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in (
            "import_module",
            "__import__",
        ):
            found += [
                (node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
    return found


def test_shards_and_light_modules_load_nothing_heavy() -> None:
    loaded = loaded_by([*modules_of("shards"), *LIGHT])
    offenders = {module: sorted(names & set(HEAVY)) for module, names in loaded.items() if names & set(HEAVY)}
    assert offenders == {}


def test_every_launch_module_is_in_the_list_of_light_ones() -> None:
    assert set(modules_of("launch")) - {"launch"} <= set(LIGHT)


def test_learning_code_loads_neither_ray_nor_launch() -> None:
    # The command line knows all packages, and the file of an optional package is loaded only where that is wanted.
    aside = {"t4p.cli", "t4p.models.sparse.minkowski"}
    modules = [module for module in modules_of("t4p") if module not in aside]
    run = subprocess.run(
        [sys.executable, "-c", REPORT, *modules], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert "torch" in loaded
    assert "deepspeed" in loaded
    assert loaded & {"ray", "launch"} == set()


def test_evaluation_needs_neither_deepspeed_nor_clip() -> None:
    assert loaded_by(["t4p.tasks.evaluate"])["t4p.tasks.evaluate"] & {"deepspeed", "open_clip"} == set()


@pytest.mark.parametrize("name", IMPORTERS)
def test_only_its_own_file_imports(name: str) -> None:
    importers = {
        str(file.relative_to(ROOT))
        for file in sources()
        if any(imported.partition(".")[0] == name for _, imported in imports_in(file))
    }
    assert importers == IMPORTERS[name]


def test_dependencies_point_from_launch_to_t4p_to_shards() -> None:
    forbidden = {"shards": {"t4p", "launch", "torch"}, "t4p": {"launch"}, "launch": set()}
    offenders = [
        f"{file.relative_to(ROOT)}:{line}: {imported}"
        for file in sources()
        for line, imported in imports_in(file)
        if imported.partition(".")[0] in forbidden[file.relative_to(ROOT).parts[0]]
        and file != ROOT / "t4p" / "cli.py"  # it alone knows all packages
    ]
    assert offenders == []


def test_package_root_of_t4p_is_empty() -> None:
    assert (ROOT / "t4p" / "__init__.py").read_text(encoding="utf-8").strip() == ""
