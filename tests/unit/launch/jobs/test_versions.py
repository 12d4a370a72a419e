from __future__ import annotations

import platform
from pathlib import Path

import pytest

from launch.jobs.versions import installed_version, main, version_problem, version_problems


@pytest.mark.parametrize(
    ("requirement", "found"),
    [
        ("torch>=2.11", "2.11.0+cu130"),
        ("torch>=2.11", "2.15.0"),
        ("torch>=2.11", "2.16.0rc1"),
        ("torchvision", "0.1"),
        ("ray<3,>=2.60", "2.60.0"),
        ("python<3.14,>=3.11", "3.12.4"),
    ],
)
def test_a_version_in_range_fits(requirement: str, found: str) -> None:
    assert version_problem(requirement, found) is None


@pytest.mark.parametrize(
    ("requirement", "found", "problem"),
    [
        ("torch>=2.11", "2.10.0", "torch: found 2.10.0, wanted >=2.11"),
        ("ray<3,>=2.60", "3.0.0", "ray: found 3.0.0, wanted <3,>=2.60"),
        ("deepspeed>=0.19.8", None, "deepspeed: found none, wanted >=0.19.8"),
        ("torchvision", None, "torchvision: found none, wanted any version"),
    ],
)
def test_a_version_out_of_range_is_named_with_what_was_wanted(requirement: str, found: str, problem: str) -> None:
    assert version_problem(requirement, found) == problem


def test_every_problem_is_reported_and_nothing_else() -> None:
    problems = version_problems(["torch>=2.11", "ray>=2.60", "nonesuch"], {"torch": "2.10", "ray": "2.60.0"}.get)
    assert problems == ("torch: found 2.10, wanted >=2.11", "nonesuch: found none, wanted any version")


def test_versions_are_those_of_this_environment() -> None:
    assert installed_version("python") == platform.python_version()
    assert installed_version("nonesuch-package") is None
    assert installed_version("pytest") == pytest.__version__


def test_the_program_says_what_it_found_and_ends_with_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("python>=3.11\npytest\n")
    assert main(file) == 0
    assert f"python {platform.python_version()}" in capsys.readouterr().out

    file.write_text("python>=3.11\ntorch>=99\nnonesuch>=1\n")
    assert main(file) == 2
    said = capsys.readouterr().err
    assert "2 package(s)" in said
    assert f"torch: found {installed_version('torch')}, wanted >=99" in said
    assert "nonesuch: found none" in said
    assert "every node" in said
