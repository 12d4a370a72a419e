"""Loader processes do not outlive the process that they load for, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_processes import is_running
from torch.utils.data import Dataset

from shards.packing.pack import pack
from t4p.data.loaders import load
from t4p.errors import LostLoaderError

SCRIPT = """
import json, multiprocessing, sys, time
from t4p.config.files import load_config
from t4p.data.fetch import Catalogue
from t4p.data.labelled import build_label_recipe
from t4p.data.stream import ValidationStream

config = load_config(["configs/pretrain/rooms.yaml"], ["run.dir=unused", "data.shards=" + json.dumps([sys.argv[1]])])
catalogue = Catalogue(config.data.urls)
recipe = build_label_recipe(catalogue, config.data, config.model, config.model.labels, ("unlabelled",), augment=None)
batches = ValidationStream(catalogue, recipe, 2).batches()
next(batches)
time.sleep(3)  # the loaders have more to send than their pipes hold
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def test_loaders_of_a_killed_process_end(tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    pack("synthetic", "seed=13,rooms=2,frames=8", shards)
    with subprocess.Popen([sys.executable, "-c", SCRIPT, shards], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        loaders = [int(pid) for pid in process.stdout.readline().split()]
        os.kill(process.pid, signal.SIGKILL)
    assert len(loaders) == 2
    deadline = time.monotonic() + 60
    while left := [pid for pid in loaders if is_running(pid)]:
        assert time.monotonic() < deadline, f"loaders {left} are still there"
        time.sleep(0.2)


class Deadly(Dataset[int]):
    """The fourth sample kills or hangs whoever makes it."""

    def __init__(self, sign: int) -> None:
        self._sign = sign

    def __getitem__(self, number: int) -> int:
        if number == 3:
            time.sleep(0.5)  # what was made before is on its way
            os.kill(os.getpid(), self._sign)
        return number


@pytest.mark.parametrize(
    ("sign", "message"),
    [
        (
            signal.SIGKILL,
            "was killed .*, a second time at the same samples; where memory is short, lower data.num_work",
        ),
        (signal.SIGSTOP, "nothing came .*is stopped.*, a second time .*; see whether the disk or storage .* answers"),
    ],
)
def test_what_ends_loaders_twice_ends_the_loading_and_the_next_move_fits(sign: int, message: str) -> None:
    loaded = load(
        Deadly(sign), lambda done: ([n] for n in range(done, 9)), 1, tuple, patience=5.0
    )  # a busy machine takes seconds to start a loader
    assert [next(loaded) for _ in range(3)] == [(0,), (1,), (2,)]
    with pytest.raises(LostLoaderError, match=message):
        next(loaded)


class DeadlyOnce(Dataset[int]):
    """Each of some samples kills whoever makes it first."""

    def __init__(self, folder: Path, deadly: range) -> None:
        self._folder, self._deadly = folder, deadly

    def __getitem__(self, number: int) -> int:
        if number in self._deadly and not (been := self._folder / str(number)).exists():
            been.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_four_losses_are_borne_and_the_fifth_within_a_hundred_batches_is_not(tmp_path: Path) -> None:
    def numbers(done: int) -> Iterator[list[int]]:
        return ([n] for n in range(done, 30))

    loaded = load(DeadlyOnce(tmp_path, range(3, 19, 5)), numbers, 1, tuple)
    assert list(loaded) == [(n,) for n in range(30)]
    loaded = load(DeadlyOnce(tmp_path, range(2, 25, 5)), numbers, 1, tuple)
    # from the third list's loss to the twenty-third's; each is seen up to a few lists early, or a little late
    with pytest.raises(LostLoaderError, match=r"for the 5th time within (1[5-9]|2\d) batches"):
        list(loaded)


BATCHES_OF_4_MB = """
import torch
from torch.utils.data import Dataset
from t4p.data.loaders import load

class Large(Dataset):
    def __getitem__(self, number):
        return torch.full((1 << 20,), float(number))

loaded = load(Large(), lambda done: ([n, n + 100] for n in range(done, 12)), 2, torch.stack)
print([int(batch[1, 0]) for batch in loaded])
"""


def test_batches_larger_than_the_shared_memory_of_a_container_arrive() -> None:
    """A bus error kills who writes beyond the 64 MB that containers give."""
    small = "mount -t tmpfs -o size=8m tmpfs /dev/shm || exit 77"
    command = ["unshare", "--mount", "sh", "-c", f'{small}; exec "$@"', "sh", sys.executable, "-c", BATCHES_OF_4_MB]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if ran.returncode == 77 or "unshare" in ran.stderr:
        pytest.skip(f"mounting is refused here: {ran.stderr.strip()}")
    assert ran.stdout == f"{list(range(100, 112))}\n", ran.stderr
