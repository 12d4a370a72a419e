"""Are the packages of an environment those that the shipped source needs? A Ray job asks this before anything else.

Run as a program, `python -m launch.jobs.versions FILE`, it compares the environment it runs in with a file of
requirements, one per line. That takes a fraction of a second: no package is imported.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

# The interpreter is compared like a package of this name.
PYTHON = "python"
# Named when everything fits: the ones whose versions explain a difference between two clusters.
TELLING = ("python", "ray", "torch", "deepspeed")


def installed_version(name: str) -> str | None:
    """None where the package is absent."""
    if name == PYTHON:
        return platform.python_version()
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def version_problem(requirement: str, found: str | None) -> str | None:
    """Why a version does not satisfy a requirement such as `torch>=2.11`, as `torch: found 2.10.0, wanted >=2.11`."""
    wanted = Requirement(requirement)
    if found is not None and wanted.specifier.contains(found, prereleases=True):
        return None
    return f"{wanted.name}: found {found or 'none'}, wanted {wanted.specifier or 'any version'}"


def version_problems(
    requirements: Sequence[str], find: Callable[[str], str | None] = installed_version
) -> tuple[str, ...]:
    """One line per requirement that is not satisfied."""
    checked = [version_problem(requirement, find(Requirement(requirement).name)) for requirement in requirements]
    return tuple(problem for problem in checked if problem is not None)


def main(file: Path) -> int:
    """Compare, say what was found, return the exit status: 0, or 2 where something does not fit."""
    problems = version_problems(file.read_text(encoding="utf-8").splitlines())
    if not problems:
        found = ", ".join(f"{name} {installed_version(name)}" for name in TELLING)
        print(f"versions fit: {found}; source in {Path.cwd()}", flush=True)  # noqa: T201
        return 0
    listed = "\n".join(f"  {problem}" for problem in problems)
    print(  # noqa: T201
        f"error: {len(problems)} package(s) on {platform.node()} do not fit the source that was shipped:\n{listed}\n"
        f"Install them on every node for {sys.executable}, or start Ray from an environment that has them",
        file=sys.stderr,
    )
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
