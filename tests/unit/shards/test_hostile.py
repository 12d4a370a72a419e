"""Hostile datasets, all checksums right: refused in words by every reader, with little memory and in little time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_datasets import PWNED, write_all

from shards.errors import ShardError
from shards.packing.pack import pack
from shards.reader import DatasetReader
from shards.summary import summarise
from shards.verify import verify

# What a training does with each dataset, in a process that measures its memory.
TRAIN = """
import json, resource, sys, time
from pathlib import Path
from shards.errors import ShardError
from shards.schema import Frame
from t4p.data.decode import decode_frame
from t4p.data.fetch import Catalogue
import numpy, PIL.Image
told = {}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    try:
        stored = Catalogue([str(folder)]).fetch(0, 0)
        if isinstance(stored, Frame):
            decode_frame(stored)
        error = None
    except ShardError as raised:
        error = str(raised)
    told[folder.name] = error, time.process_time() - began
print(json.dumps([told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""
# A decoder of frames does not look at these: `verify` does, and a training that uses labels.
NOT_DECODED = {"labels_of_another_size"}
# These say what there is, under another name, and nobody is harmed: verify says that it is not what it should be.
HARMLESS = {"tar_climbs", "tar_absolute", "tar_escapes"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, make_scene: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    pack("seven-scenes", make_scene(folder / "kitchen", 2), str(folder / "good"))
    good = DatasetReader(str(folder / "good"))
    write_all(folder / "bad", [(good.key(0, i), good.read_members(0, i)) for i in range(2)])
    return folder / "bad"


def test_a_training_refuses_each_in_words_with_little_memory(hostile: Path, clean_environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(hostile)], env=clean_environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told, kilobytes = json.loads(done.stdout)
    assert len(told) > 50
    assert {name for name, (error, _) in told.items() if error is None} <= NOT_DECODED | HARMLESS
    for name, (error, seconds) in told.items():
        assert seconds < 5, name
        assert error is None or (error.isprintable() and len(error) < 2000), (name, error)
    assert kilobytes < 300_000
    assert not Path(PWNED).exists()


def test_what_is_said_of_each_is_printable(hostile: Path) -> None:
    for folder in sorted(hostile.iterdir()):
        try:
            dataset = DatasetReader(str(folder))
            lines = [dataset.key(0, 0), *summarise(dataset).lines().values()]
        except ShardError as error:
            lines = [str(error)]
        for line in lines:
            assert line.isprintable(), (folder.name, line)


def test_verify_names_each(hostile: Path) -> None:
    for folder in sorted(hostile.iterdir()):
        began = time.process_time()
        try:
            messages = [problem.message for problem in verify(str(folder)).problems]
        except ShardError as error:
            messages = [str(error)]
        assert messages, folder.name
        for message in messages:
            assert message.isprintable(), (folder.name, message)
        assert time.process_time() - began < 5, folder.name
    assert not Path(PWNED).exists()
    assert "\x1b" not in os.listdir(".")
