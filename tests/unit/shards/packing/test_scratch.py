"""Scratch folders: gone at the end, and those of killed packers at the next beginning; nobody else's."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.packing.scratch import scratch_folder, sweep

HOLD = """
from shards.packing.scratch import scratch_folder
with scratch_folder() as folder:
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def test_the_folder_of_a_killed_packer_goes_and_that_of_a_living_one_stays(
    parent: Path, clean_environ: dict[str, str]
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD],
            env=clean_environ | {"TMPDIR": str(parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    folders = [Path(process.stdout.readline().strip()) for process in processes]
    (folders[0] / "shard-000000.tar").write_bytes(b"half")
    processes[0].kill()
    processes[0].communicate()
    with scratch_folder() as ours:
        assert sorted(parent.iterdir()) == sorted([folders[1], ours])
        sweep(parent)
        assert ours.is_dir()
    processes[1].communicate("\n", timeout=30)
    assert list(parent.iterdir()) == []


def test_what_cannot_be_told_for_certain_stays(parent: Path) -> None:
    new, old, link, file = (parent / f"t4p-pack-{name}" for name in ("new", "old", "link", "file"))
    new.mkdir()
    old.mkdir()
    (parent / "precious").mkdir()
    link.symlink_to(parent / "precious")
    file.write_text("no folder")
    os.utime(old, (time.time() - 3600,) * 2)  # killed before it had its lock
    sweep(parent)
    left = sorted(path.name.removeprefix("t4p-pack-") for path in parent.iterdir())
    assert left == ["file", "link", "new", "precious"]
