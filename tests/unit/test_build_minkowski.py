"""The cache of tools/build_minkowski.py: which wheel fits, and what happens to one that does not import."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a cache of its own and a compiler that only says its version."""
    spec = importlib.util.spec_from_file_location("build_minkowski", ROOT / "tools" / "build_minkowski.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho 12.2.0\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CFLAGS", raising=False)
    monkeypatch.setattr(sys, "argv", ["build_minkowski.py"])
    return module


def test_another_torch_compiler_or_option_is_another_wheel(tool, tmp_path, monkeypatch) -> None:
    folders = [tool.cache_folder(), tool.cache_folder()]
    monkeypatch.setattr(tool, "version", lambda name: "2.15.0+other")
    folders.append(tool.cache_folder())
    (tmp_path / "compiler").write_text("#!/bin/sh\necho 13.1.0\n")
    folders.append(tool.cache_folder())
    monkeypatch.setenv("CFLAGS", "-O1")
    folders.append(tool.cache_folder())
    assert folders[0] == folders[1]
    assert len(set(folders)) == 4
    assert all(folder.parent == tmp_path / "cache" / "text4point" for folder in folders)


def test_a_built_wheel_is_kept_and_one_that_does_not_import_is_built_again(tool, monkeypatch) -> None:
    built, installed, broken = [], [], set()

    def build(folder: Path) -> Path:
        wheel = folder / "minkowski.whl"
        wheel.write_text(f"build {len(built)}")
        built.append(wheel)
        return wheel

    def install(wheel: Path) -> bool:
        installed.append(wheel.read_text())
        return wheel.read_text() not in broken

    monkeypatch.setattr(tool, "build", build)
    monkeypatch.setattr(tool, "install", install)
    assert tool.main() == 0
    assert tool.main() == 0
    assert (len(built), installed) == (1, ["build 0", "build 0"])
    broken.add("build 0")
    assert tool.main() == 0
    assert installed[2:] == ["build 0", "build 1"]
    assert [path.read_text() for path in tool.cache_folder().iterdir()] == ["build 1"]
    broken.add("build 1")
    broken.add("build 2")
    assert tool.main() == 1  # nothing is kept that does not import
    assert [path.read_text() for path in tool.cache_folder().iterdir()] == ["build 1"]


def test_the_sources_of_the_cpu_become_one_file(tool, tmp_path) -> None:
    sources = '        [\n            "a.cpp",\n            "b.cpp",\n        ],\n        ["pybind/m.cpp"],\n'
    cpu = f'    "cpu": [\n        CppExtension,\n{sources}        ["-DCPU_ONLY"],\n    ],\n'
    setup = f'SOURCE_SETS = {{\n{cpu}    "gpu": [CUDAExtension, ["a.cpp"]],\n}}\n'
    (tmp_path / "setup.py").write_text(setup)
    (tmp_path / "src").mkdir()
    tool._join_sources(tmp_path)
    assert (tmp_path / "src" / "all_cpu.cpp").read_text() == '#include "a.cpp"\n#include "b.cpp"\n'
    names = {"CppExtension": "cpp", "CUDAExtension": "cuda"}
    exec((tmp_path / "setup.py").read_text(), names)
    assert names["SOURCE_SETS"] == {
        "cpu": ["cpp", ["all_cpu.cpp"], ["pybind/m.cpp"], ["-DCPU_ONLY"]],
        "gpu": ["cuda", ["a.cpp"]],
    }
