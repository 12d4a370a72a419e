"""The commands that close a gap, ready to be pasted. Pure but for looking at where this package lies."""

from __future__ import annotations

import os
import shlex
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from launch.jobs.source import EXTRAS

PROJECT = "text4point"
MINKOWSKI = "MinkowskiEngine"
# As Makefile and README have them.
MINKOWSKI_LIBRARIES = "sudo apt-get install g++ libopenblas-dev python3-dev"
LAST_MINKOWSKI_PYTHON = (3, 11)


def required_python() -> str:
    """Versions of Python that the project supports, such as `>=3.11`; "" where nothing says so."""
    checkout = find_checkout()
    if checkout is not None:
        return str(_pyproject(checkout)["requires-python"])
    try:
        return metadata(PROJECT)["Requires-Python"] or ""
    except PackageNotFoundError:
        return ""


def project_requirements() -> tuple[str, ...]:
    """What the project needs for all that it does, Minkowski's backend aside; () where nothing says so.

    Those of the checkout count where there is one: the metadata of an editable install are as old as the install.
    """
    checkout = find_checkout()
    try:
        if checkout is not None:
            project = _pyproject(checkout)
            extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
            return tuple(str(Requirement(line)) for line in [*project["dependencies"], *extras])
        listed = [Requirement(line) for line in requires(PROJECT) or ()]
    except PackageNotFoundError:
        return ()
    needed = [
        wanted
        for wanted in listed
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS))
    ]
    for wanted in needed:
        wanted.marker = None  # or pip would leave it out
    return tuple(str(wanted) for wanted in needed)


def pip_install(packages: Sequence[str], reinstall: bool = False, folder: Path | None = None) -> str:
    """The command that installs packages into this environment, at the versions that the tests passed with.

    Args:
        packages: names; those that the project requires are written with its bounds.
        reinstall: they are there, and do not work.
        folder: root of the checkout. Default: the one that this file lies in, if it is one.
    """
    bounds = {canonicalize_name(Requirement(line).name): line for line in project_requirements()}
    wanted = [bounds.get(canonicalize_name(Requirement(package).name), package) for package in packages]
    words = [_short(Path(sys.executable)), "-m", "pip", "install"]
    if reinstall:
        words += ["--force-reinstall", "--no-deps", "--no-cache-dir"]
    checkout = folder or find_checkout()
    if checkout is not None:
        words += ["-c", _short(checkout / "constraints.txt")]
    return shlex.join([*words, *wanted])


def install_minkowski(python: tuple[int, int] = sys.version_info[:2], folder: Path | None = None) -> str:
    """The command that builds MinkowskiEngine, which exists for Python 3.11 at the latest.

    Args:
        python: version of this environment.
        folder: as for `pip_install`.
    """
    checkout = folder or find_checkout()
    if checkout is not None:
        into = "" if checkout.resolve() == Path.cwd() else f"cd {shlex.quote(str(checkout))} && "
        if python > LAST_MINKOWSKI_PYTHON:
            return f"{into}make distclean && make env PYTHON=python3.11"
        return f"{into}{MINKOWSKI_LIBRARIES} && make minkowski"
    if python > LAST_MINKOWSKI_PYTHON:
        return "python3.11 -m venv .venv && .venv/bin/pip install text4point && .venv/bin/t4p doctor"
    # No cache: a wheel built against another torch imports with "undefined symbol".
    return (
        f"{MINKOWSKI_LIBRARIES} && CFLAGS=-g0 SETUPTOOLS_USE_DISTUTILS=stdlib "
        f"{_short(Path(sys.executable))} -m pip install "
        "--no-build-isolation --no-cache-dir --no-deps --force-reinstall MinkowskiEngine==0.5.4"
    )


def find_checkout() -> Path | None:
    """The root of the repository, where these packages are used from one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "Makefile").is_file() and (root / "constraints.txt").is_file() else None


def _pyproject(checkout: Path) -> dict[str, Any]:
    with (checkout / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def _short(path: Path) -> str:
    """Relative where it lies below the current folder."""
    here = os.getcwd() + os.sep
    return str(path).removeprefix(here)
