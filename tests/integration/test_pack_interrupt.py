"""Ctrl-C, SIGTERM and SIGKILL in the middle of a real `pack`: no process left, no manifest, and it resumes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SHARD_SIZE_MB = "1.2"
NUM_FRAMES = 32


def command(source: Path, folder: Path, workers: int = 2) -> list[str]:
    pack = [sys.executable, "-m", "commands.shards", "pack", "tum", str(source), str(folder)]
    return [*pack, "--workers", str(workers), "--shard-size-mb", SHARD_SIZE_MB]


@pytest.fixture(scope="module")
def long_sequence(tum_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many pairs out of four: long enough to be interrupted, by a test that gets no turn for a second, too."""
    original = tum_sample / "rgbd_dataset_freiburg1_rpy"
    folder = tmp_path_factory.mktemp("long") / "freiburg1_long"
    folder.mkdir()
    for name in ("rgb", "depth"):
        lines = [line.split() for line in (original / f"{name}.txt").read_text().splitlines() if line[0] != "#"]
        (folder / name).mkdir()
        with (folder / f"{name}.txt").open("w") as listing:
            for i in range(NUM_FRAMES):
                stamp, path = float(lines[i % 4][0]) + 100 * (i // 4), lines[i % 4][1]
                shutil.copyfile(original / path, folder / name / f"{i}.png")
                listing.write(f"{stamp:.6f} {name}/{i}.png\n")
    return folder


@pytest.fixture(scope="module")
def whole(
    long_sequence: Path, tmp_path_factory: pytest.TempPathFactory, clean_environ: dict[str, str]
) -> dict[str, bytes]:
    """The objects of a pack that nobody interrupts, by one worker."""
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    subprocess.run(command(long_sequence, folder, workers=1), env=clean_environ, check=True, capture_output=True)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.kill
@pytest.mark.parametrize("how", ["ctrl-c", "SIGINT", "SIGTERM", "SIGKILL"])
def test_stopped_in_the_middle(
    long_sequence: Path, whole: dict[str, bytes], tmp_path: Path, clean_environ: dict[str, str], how: str
) -> None:
    folder = tmp_path / "dataset"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        command(long_sequence, folder),
        env={**clean_environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "shard-000001.idx").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 3  # two, and multiprocessing's resource tracker
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    else:
        process.send_signal(getattr(signal, how))
    _, errors = process.communicate(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    left = contents(folder)
    assert "manifest.json" not in left
    assert len(left) < len(whole) - 4, "it was not stopped in the middle"
    if how == "SIGKILL":
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == {"SIGTERM": 143}.get(how, 130)
        warning, message = errors.splitlines()
        assert warning.endswith(
            f"groundtruth.txt: {NUM_FRAMES} of {NUM_FRAMES} frames have no pose, the first is 1305031241.529758"
        )
        assert message == "stopped; what is finished is kept, and the same call again resumes"
        assert not [name for name in left if name.startswith(".")]
        assert list(scratch.iterdir()) == []
    resumed = subprocess.run(
        command(long_sequence, folder), env=clean_environ, check=True, capture_output=True, text=True
    )
    assert "kept from before" in resumed.stdout
    assert contents(folder) == whole
