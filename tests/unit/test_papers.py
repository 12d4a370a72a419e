"""What README says of the tree and of the benchmarks is what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Folders whose insides the map leaves to themselves.
CLOSED = ("tests/data", "tests/unit", "docs")


def tracked() -> list[str]:
    if shutil.which("git") is None:
        pytest.skip("needs git, which lists the files of the tree")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a checkout: git does not list its files")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def folders_of_map() -> dict[str, str]:
    """The folders of README's map by their path, each with what is said of it."""
    block = README.partition("## The files")[2].split("```")[1]
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in block.splitlines():
        if match := re.match(r"( *)(\w+)/ *(.*)", line):
            parents = [*parents[: len(match[1]) // 2], match[2]]
            found["/".join(parents)] = match[3]
    return found


def test_the_map_of_files_is_the_tree() -> None:
    tree = {
        folder
        for name in tracked()
        for folder in (str(parent) for parent in Path(name).parents)
        if folder != "." and not folder.startswith(".") and not folder.startswith(tuple(f"{each}/" for each in CLOSED))
    }
    assert set(folders_of_map()) == tree


def test_every_file_that_the_map_names_is_there() -> None:
    names = {
        f"{folder}/{name}"
        for folder, text in folders_of_map().items()
        for name in re.findall(r"\b\w+\.(?:py|md|yaml|toml)\b", text)
    }
    assert len(names) > 50
    assert {name for name in names if "TOPIC" not in name and not (ROOT / name).is_file()} == set()


def test_every_page_and_file_that_the_papers_link_is_there() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "RESULTS.md"]
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert dead == []


def newest(topic: str) -> dict[str, Any]:
    lines = (ROOT / "benchmarks" / "results" / f"{topic}.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])


def quickstart(*keys: str) -> Callable[[], str]:
    """Means over seeds of the newest run of bench_quickstart.py, as README's table has them."""

    def figure(key: str) -> float:
        value = newest("quickstart")["figures"][key]
        value = value.get("miou", value) if isinstance(value, dict) else value
        return value["mean"] if isinstance(value, dict) else value

    return lambda: "; ".join(f"{figure(key):.3f}" for key in keys)


def contrastive_memory() -> str:
    row = next(row for row in newest("contrastive")["rows"] if row["num_pairs"] == 16384)
    return ", ".join(f"{row[name] / 1e6:,.0f} MB" for name in ("streamed_bytes", "open_clip_bytes"))


# The first words of a row of README's table that quotes a benchmark, and what its newest run says.
FIGURES = {
    "zero-shot mIoU on rooms never seen": quickstart("zero_shot_both", "teacher_miou", "trivial_miou"),
    "fine-tuned on 2 labelled rooms": quickstart("scratch_2_rooms", "both_2_rooms"),
    "the same on 4 rooms": quickstart("scratch_4_rooms", "both_4_rooms"),
    "memory of the contrastive loss": contrastive_memory,
}


def rows_of_benchmarks() -> dict[str, str]:
    """The rows of README's table whose command is a benchmark: what they are of, and their figures."""
    found, benchmark = {}, False
    for what, figure, command in re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", README, flags=re.MULTILINE):
        benchmark = "benchmarks/bench_" in command or (command == "same" and benchmark)
        if benchmark:
            found[what] = figure
    return found


def test_every_quoted_benchmark_has_its_newest_figures() -> None:
    rows = rows_of_benchmarks()
    quoted = {start: figure for start in FIGURES for what, figure in rows.items() if what.startswith(start)}
    assert len(quoted) == len(rows) == len(FIGURES)
    assert quoted == {start: said() for start, said in FIGURES.items()}


def test_every_benchmark_records_what_it_finds() -> None:
    silent = [
        path.name
        for path in sorted((ROOT / "benchmarks").glob("bench_*.py"))
        if not re.search(r"^from record import .*\brecord\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert silent == []
