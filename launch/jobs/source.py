"""What a Ray job takes along: the packages' source, and the requirements that it makes of the cluster."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from launch.jobs.versions import PYTHON
from t4p.errors import ConfigError

DISTRIBUTION = "text4point"
# What a job takes beside the project's own dependencies: every extra of the project that is for running it.
EXTRAS = ("train", "launch", "storage")
PACKAGES = ("shards", "t4p", "launch", "commands", "configs")


def read_source() -> dict[str, bytes]:
    """Every file of the packages by its path in the working directory, caches and hidden files left out."""
    return {
        f"{package}/{file.relative_to(folder).as_posix()}": file.read_bytes()
        for package in PACKAGES
        for folder in [_folder_of(package)]
        for file in _shipped_files(folder)
    }


def read_requirements(extras: tuple[str, ...]) -> tuple[str, ...]:
    """What the installed project requires of a place where a job runs, as `name>=1,<2`, Python itself first.

    Args:
        extras: besides EXTRAS.

    Raises:
        ConfigError: the project is not installed, so nobody knows.
    """
    try:
        found = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"{DISTRIBUTION} is not installed here, so the versions it needs of the cluster are not known; "
            "run `pip install -e .` in its folder"
        ) from None
    requirements = [Requirement(line) for line in found.get_all("Requires-Dist") or ()]
    asked = ("", *EXTRAS, *extras)
    wanted = [r for r in requirements if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in asked)]
    return (f"{PYTHON}{found['Requires-Python']}", *(f"{r.name}{r.specifier}" for r in wanted))


def project_version() -> str:
    """The version of this project, as installed."""
    return importlib.metadata.version(DISTRIBUTION)


def _folder_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None, "the packages lie side by side"
    assert spec.submodule_search_locations, "each of them is a package"
    return Path(next(iter(spec.submodule_search_locations)))


def _shipped_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden:
            yield path
