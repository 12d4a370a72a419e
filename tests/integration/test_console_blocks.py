"""Every `console` block of README and docs runs, in one sandbox; one that says `not-run: REASON` has a twin in small.

The sandbox has what the pages speak of: raw frames in RAW and RAW/chess, a bucket called `bucket`, and what earlier
blocks left. Commands run as on a command line, each in a process of its own (tests/forks.py).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from forks import run_python
from s3_server import S3Server
from slanted_plane import write_folder, write_seven_scenes
from small_model import SMALL, TINY_NETWORK

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("forked_python")]

ROOT = Path(__file__).resolve().parents[2]
# In the order in which somebody reads: README first, and what a block needs was made by one before.
PAGES = ["README.md", "docs/datasets.md", "docs/pretraining.md", "docs/checkpoints.md", "docs/finetuning.md"]
PAGES += sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in PAGES)
BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_RUN = "console not-run: "
MOST_NOT_RUN = 12
# `source` and `export` are for the shell of a reader.
OURS = ("t4p ", "make ", "ray ", "(umask", "source ", "export ")

PROGRAM = "import os, sys; os.chdir(sys.argv.pop(1)); from commands.main import main; sys.argv[0] = 't4p'; main()"

SHORT = "train.num_steps=2 train.warmup_steps=1 train.checkpoint_every=2 train.global_batch_size=2"
OWN = f"configs/pretrain/own.yaml configs/smoke.yaml {' '.join(map(shlex.quote, SMALL))} {SHORT} data.num_workers=0"
ROOMS = f"{SHORT} data.num_workers=0 {' '.join(map(shlex.quote, TINY_NETWORK))}"
OF_ROOMS = f"""
t4p shards pack synthetic seed=1,rooms=1,frames=4 rooms/train
t4p shards pack synthetic seed=3,rooms=1,frames=2 rooms/held_out
t4p pretrain configs/pretrain/rooms.yaml {ROOMS}
t4p finetune configs/finetune/rooms.yaml configs/finetune/few_labels.yaml {ROOMS} 'data.shards=[rooms/train]' \
    model.pretrained=runs/rooms/checkpoints/step_00000002
t4p checkpoint export runs/finetune/checkpoints/step_00000002 model.safetensors --finetuned-share 0.5
t4p evaluate model.exported=model.safetensors 'data.shards=[rooms/held_out]' --page scores.html
"""


@dataclass(frozen=True)
class Elsewhere:
    """A test file that runs the commands on the real thing, and words of the block that stand in it."""

    file: str
    words: tuple[str, ...]


# By page and first command: the same in small.
TWINS: dict[tuple[str, str], str | Elsewhere] = {
    ("README.md", "make quickstart"): "make -n quickstart test",
    ("README.md", "t4p pretrain configs/smoke.yaml"): f"t4p pretrain {OWN} 'data.shards=[DST]' run.dir=runs/mine",
    ("README.md", "t4p shards pack synthetic"): OF_ROOMS,
    ("docs/finetuning.md", "t4p launch pretrain"): "t4p shards info rooms/train",  # README's is the same road
    ("docs/finetuning.md", "t4p shards pack synthetic-scenes"): Elsewhere(
        "tests/integration/test_objects.py", ("synthetic-scenes", "rooms_instance.yaml", "rooms_detection.yaml")
    ),
    ("docs/datasets.md", "t4p shards pack synthetic"): """
t4p shards pack synthetic seed=1,rooms=1,frames=2 small/train
t4p shards pack synthetic seed=1,first=200,rooms=1,frames=2 small/validation
t4p shards pack synthetic-scenes seed=1,rooms=1 small/train-scenes
""",
    ("docs/pretraining.md", "t4p shards info packed/train"): f"""
t4p shards info small/train
t4p pretrain {OWN} 'data.shards=[small/train]' 'data.validation_shards=[small/validation]' run.dir=runs/page
t4p checkpoint export runs/page mine.safetensors
t4p evaluate model.exported=mine.safetensors 'data.shards=[rooms/held_out]' "data.ignored_labels=['*']"
""",
    ("docs/clusters.md", "t4p launch pretrain"): Elsewhere("tests/integration/test_launch.py", ("--follow",)),
    ("docs/clusters.md", "(umask 077; ray get-auth-token"): Elsewhere("tests/ray_cluster.py", ("--head", "token")),
    ("docs/clusters.md", "t4p launch list"): Elsewhere("tests/faults.py", ("list", "status", "logs", "stop")),
    ("docs/doctor.md", "t4p doctor"): Elsewhere("tests/integration/test_doctor.py", ("doctor", "--url")),
}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        fence: what stands behind the backticks.
        commands: its commands, whole lines.
    """

    page: str
    fence: str
    commands: tuple[str, ...]

    @property
    def is_run(self) -> bool:
        return self.fence == "console"

    @property
    def key(self) -> tuple[str, str]:
        return next((key for key in TWINS if key[0] == self.page and self.first.startswith(key[1])), (self.page, ""))

    @property
    def first(self) -> str:
        return next(command for command in self.commands if not command.startswith(("source", "export")))


def commands_of(text: str) -> tuple[str, ...]:
    """The commands of a block: lines that go on are joined, remarks left out."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return tuple(stripped for line in lines if (stripped := re.sub(r"\s+#.*", "", line).strip()))


BLOCKS = [
    Block(page, match[1], commands_of(match[2]))
    for page in PAGES
    for match in BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))
    if match[1].startswith("console") or any(line.startswith(OURS) for line in match[2].splitlines())
]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("reader")
    write_folder(folder / "RAW", 12)
    write_seven_scenes(folder / "RAW" / "chess", 3)
    environ = os.environ | s3_server.environ() | {"COLUMNS": "120"}
    client = boto3.client(
        "s3",
        endpoint_url=s3_server.url,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="bucket")
    yield folder, environ
    shutil.rmtree(folder)


def run(command: str, folder: Path, environ: dict[str, str]) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        done = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
    elif program in ("source", "export"):
        return
    else:
        assert program == "t4p", command
        done = run_python(["-c", PROGRAM, str(folder), *arguments], environ, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr


def test_every_block_of_commands_is_run_or_says_why_not() -> None:
    assert [block for block in BLOCKS if not block.fence.startswith("console")] == []
    not_run = [block for block in BLOCKS if not block.is_run]
    assert len(not_run) <= MOST_NOT_RUN
    for block in not_run:
        assert block.fence.startswith(NOT_RUN), block
        assert len(block.fence) > len(NOT_RUN) + 8, block
        assert block.key in TWINS, f"{block}: no twin"
    assert {block.key for block in not_run} == set(TWINS), "a twin of a block that is gone"


def test_blocks_run_as_they_stand_and_the_others_in_small(sandbox: tuple[Path, dict[str, str]]) -> None:
    for block in BLOCKS:
        twin = None if block.is_run else TWINS[block.key]
        if isinstance(twin, Elsewhere):
            text = (ROOT / twin.file).read_text(encoding="utf-8")
            assert all(words in text for words in twin.words), block
            continue
        for command in block.commands if twin is None else commands_of(twin):
            run(command, *sandbox)
