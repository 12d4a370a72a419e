"""Every next move that a message gives is made: mistake, message, the command or override that it names, what follows.

A row for each family of messages. What needs torch is a process of its own (tests/forks.py). The moves after Ctrl-C and
SIGTERM are in test_stop.py, those of a launch and a cluster in test_launch.py.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from forks import run_python
from small_model import SMALL

from commands.main import main
from shards.packing.pack import pack
from shards.reader import DatasetReader
from t4p.runs.checkpoint import checkpoint_name

pytestmark = pytest.mark.usefixtures("forked_python")

ROOT = Path(__file__).resolve().parents[2]
OLDER = ROOT / "tests" / "data" / "older"
FRAMES = ROOT / "tests" / "data" / "tum_rgbd" / "rgbd_dataset_freiburg1_rpy"
TRAIN = ["configs/smoke.yaml", *SMALL, "data.shards=[{shards}]", "run.dir={run}", "train.warmup_steps=0"]
RUN = ["pretrain", *TRAIN, "train.num_steps=3", "train.checkpoint_every=1"]
DRY = ["launch", "pretrain", *TRAIN, "train.num_steps=3", "--dry-run"]
STEP = "{run}/checkpoints/step_0000000"

NEED_TORCH = ("pretrain", "checkpoint")

Files = Mapping[str, Path]


@dataclass(frozen=True)
class Move:
    """A mistake, and the way out of it that the message names.

    Attributes:
        mistake: a call that is refused; filled in are `{shards}`, `{run}` (of three steps, each saved), `{tmp}` and
            `{first}`, the key of the first sample.
        status: its exit status.
        said: what stands in the message, among it the move.
        move: the call that the message names, or the first one with the override that it names.
        then: what that call says.
        spoil: done to the files before.
        between: done by hand between the calls, as the message says.
    """

    mistake: Sequence[str]
    status: int
    said: Sequence[str]
    move: Sequence[str]
    then: str
    spoil: Callable[[Files], object] | None = None
    between: Callable[[Files], object] | None = None


def lose_marker(files: Files) -> None:
    (files["run"] / "checkpoints" / "step_00000003" / "COMPLETE.json").unlink()


def damage_all(files: Files) -> None:
    for path in (files["run"] / "checkpoints").glob("step_*/mp_rank_00_model_states.pt"):
        path.write_bytes(b"damaged")


def move_away(files: Files) -> None:
    (files["run"] / "checkpoints").rename(files["run"] / "kept")


def write_file(files: Files) -> None:
    (files["tmp"] / "out.safetensors").write_bytes(b"of somebody")


NOT_FINITE = "lower train.learning_rate, lengthen train.warmup_steps or lower train.gradient_clipping"

MOVES = {
    # The configuration.
    "a key that is misspelt": Move(
        [*DRY, "train.learning_rat=1e-3"],
        2,
        ["train.learning_rat: unknown key, did you mean 'learning_rate'?"],
        [*DRY, "train.learning_rate=1e-3"],
        "workers",
    ),
    "a value out of its range": Move(
        [*DRY, "train.warmup_steps=3"],
        2,
        ["warmup_steps (3) must be smaller than num_steps (3)"],
        [*DRY, "train.warmup_steps=2"],
        "workers",
    ),
    "a configuration of another command": Move(
        ["pretrain", "configs/finetune/rooms.yaml", "data.shards=[{shards}]", "run.dir={tmp}/other"],
        2,
        ["t4p finetune"],
        ["launch", "finetune", "configs/finetune/rooms.yaml", f"data.shards={OLDER}/scenes", "run.dir={tmp}/other"]
        + ["model.labels=[wall, floor, ceiling, chair]", "data.ignored_labels=['*']", "train.global_batch_size=1"]
        + ["--dry-run"],
        "workers",
    ),
    "images that are no multiple of a cell": Move(
        [*DRY, "data.image_size=[100,128]"],
        2,
        ["multiples of 32"],
        [*DRY, "data.image_size=[96,128]"],
        "workers",
    ),
    "more workers than frames of a batch": Move(
        [*DRY, "--workers", "3"],
        2,
        ["train.global_batch_size: 2, and there are 3 workers (--workers"],
        [*DRY, "--workers", "2"],
        "num_workers: 2",
    ),
    "an option that needs another": Move(
        [*DRY[:-1], "--follow"],
        2,
        ["--follow goes with --address http://HOST:8265"],
        DRY,
        "workers",
    ),
    # Paths and datasets.
    "no dataset": Move(
        ["shards", "info", "{tmp}/packed"],
        2,
        ["no dataset here", "make one with `t4p shards pack`"],
        ["shards", "pack", "tum", str(FRAMES), "{tmp}/packed"],
        "4 samples",
    ),
    "an unknown format": Move(
        ["shards", "pack", "tumm", str(FRAMES), "{tmp}/packed"],
        2,
        ["did you mean tum?", "see `t4p shards formats`"],
        ["shards", "formats"],
        "tum",
    ),
    "a place that is taken": Move(
        ["shards", "pack", "tum", str(FRAMES), "{shards}"],
        2,
        ["already holds a dataset", "pack to another place"],
        ["shards", "pack", "tum", str(FRAMES), "{tmp}/another"],
        "4 samples",
    ),
    "a sample that is not there": Move(
        ["shards", "show", "{shards}", "nothing", "--out", "{tmp}/look.png"],
        2,
        ["no sample 'nothing' among 4; the first is {first}"],
        ["shards", "show", "{shards}", "{first}", "--out", "{tmp}/look.png"],
        "look.png",
    ),
    "scenes where frames are wanted": Move(
        [*DRY, f"data.shards={OLDER}/scenes"],
        2,
        ["name a dataset of frames in data.shards (scenes are for t4p finetune)"],
        [*DRY, "data.shards={shards}"],
        "workers",
    ),
    "a batch larger than the dataset": Move(
        [*DRY, "train.global_batch_size=100"],
        2,
        ["train.global_batch_size: the dataset has 4 samples, fewer than one global batch of 100"],
        [*DRY, "train.global_batch_size=4"],
        "global_batch_size: 4",
    ),
    "no export": Move(
        ["evaluate", "model.exported={tmp}/out.safetensors", "data.shards={shards}"],
        2,
        ["there is no such file; write one with `t4p checkpoint export CHECKPOINT FILE`"],
        ["checkpoint", "export", "{run}", "{tmp}/out.safetensors"],
        "with labels with `t4p evaluate model.exported=",
    ),
    # Checkpoints and run folders.
    "no such checkpoint": Move(
        ["checkpoint", "verify", STEP + "9"],
        1,
        ["no such checkpoint; name a run folder, or one of the checkpoints that `t4p checkpoint list RUN_DIR` shows"],
        ["checkpoint", "list", "{run}"],
        "step_00000003",
    ),
    "a checkpoint without its marker": Move(
        ["checkpoint", "verify", STEP + "3"],
        1,
        ["no COMPLETE.json", "name an older one, or the run folder for its newest whole one"],
        ["checkpoint", "verify", "{run}"],
        "step_00000002: whole",
        spoil=lose_marker,
    ),
    "a universal checkpoint where the one is wanted that it was made from": Move(
        ["checkpoint", "export", "{run}/checkpoints/step_00000003.universal", "{tmp}/out.safetensors"],
        1,
        ["a universal checkpoint; export the one that it was made from"],
        ["checkpoint", "export", STEP + "3", "{tmp}/out.safetensors"],
        "score it on",
        spoil=lambda files: t4p(files, "checkpoint", "convert", "{run}"),
    ),
    "an export over a file": Move(
        ["checkpoint", "export", "{run}", "{tmp}/out.safetensors"],
        2,
        ["--force"],
        ["checkpoint", "export", "{run}", "{tmp}/out.safetensors", "--force"],
        "score it on",
        spoil=write_file,
    ),
    "another model on resume": Move(
        [*RUN, "loss.num_pairs_e=32"],
        1,
        ["loss.num_pairs_e: 64 -> 32", "take the changes back, or start a new run in another run.dir"],
        RUN,
        "resuming from",
    ),
    "another ZeRO stage on resume": Move(
        [*RUN, "train.zero_stage=2"],
        1,
        ["keep train.zero_stage=1; the number of ranks may change"],
        [*RUN, "train.zero_stage=1", "train.num_steps=4"],
        "finished at step 4",
    ),
    "never in a folder that has checkpoints": Move(
        [*RUN, "train.resume=never"],
        2,
        ["choose another run.dir, or set train.resume=auto"],
        [*RUN, "train.resume=auto"],
        "resuming from",
    ),
    "an older checkpoint in a folder that has newer ones": Move(
        [*RUN, "train.resume=" + STEP + "2"],
        2,
        ["choose another run.dir (it may begin from this checkpoint), or set train.resume=auto"],
        [*RUN, "train.resume=" + STEP + "2", "run.dir={tmp}/another"],
        "finished at step 3",
    ),
    "nothing but damaged checkpoints": Move(
        RUN,
        1,
        ["no whole one to resume from", "to begin anew in this one, move its checkpoints away"],
        RUN,
        "finished at step 3",
        spoil=damage_all,
        between=move_away,
    ),
    # What the training finds out.
    "no point that an image sees": Move(
        [*RUN, "run.dir={tmp}/blind", "data.max_depth=0.01"],
        1,
        ["look at one with `t4p shards show`, and check its depth scale and data.max_depth"],
        [*RUN, "run.dir={tmp}/blind", "data.max_depth=10"],
        "finished at step 3",
    ),
    "a loss that is not finite before anything is saved": Move(
        [*RUN, "run.dir={tmp}/wild", "train.learning_rate=1e30", "train.checkpoint_every=3"],
        1,
        [NOT_FINITE, "start again: nothing is saved yet, so the command begins again"],
        [*RUN, "run.dir={tmp}/wild", "train.learning_rate=1e-3"],
        "finished at step 3",
    ),
    "a loss that is not finite right after the only checkpoint": Move(
        [*RUN, "run.dir={tmp}/wild", "train.learning_rate=1e30"],
        1,
        [NOT_FINITE, "begin again in another run.dir: step 1 alone is saved, and from there it comes to the same"],
        [*RUN, "run.dir={tmp}/tame", "train.learning_rate=1e-3"],
        "finished at step 3",
    ),
}


def t4p(files: Files, *call: str) -> tuple[int, str]:
    """Exit status and output of a call, its placeholders filled in."""
    filled = [word.format(**{name: str(path) for name, path in files.items()}) for word in call]
    if filled[0] in NEED_TORCH:
        done = run_python(["-m", "commands.main", *filled], timeout=300)
        return done.returncode, done.stdout + done.stderr
    said = io.StringIO()
    argv = patch.object(sys, "argv", ["t4p", *filled])
    with redirect_stdout(said), redirect_stderr(said), argv, pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0), said.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moves") / "shards"
    pack("tum", FRAMES, str(folder))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """A run of three steps, each saved."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    status, said = t4p({"shards": shards, "run": run_dir}, *RUN)
    assert status == 0, said
    return run_dir


def first_key(shards: Path) -> str:
    return DatasetReader(str(shards)).key(0, 0)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_what_a_message_says_is_done_and_works(move: Move, shards: Path, trained: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(trained, tmp_path / "run"))
    files = {"shards": shards, "run": run_dir, "tmp": tmp_path, "first": Path(first_key(shards))}
    if move.spoil is not None:
        move.spoil(files)
    status, said = t4p(files, *move.mistake)
    assert status == move.status, said
    assert "Traceback" not in said
    for words in move.said:
        assert words.replace("{first}", str(files["first"])) in said
    if move.between is not None:
        move.between(files)
    status, said = t4p(files, *move.move)
    assert status == 0, said
    assert move.then in said


def test_after_a_loss_that_is_not_finite_the_run_goes_on_from_the_checkpoint_that_is_named(
    shards: Path, tmp_path: Path
) -> None:
    """Steps that grow until the network bears no more: what is saved right before leads there at any rate."""
    files = {"shards": shards, "run": tmp_path / "run"}
    growing = ["train.num_steps=40", "train.warmup_steps=39", "train.learning_rate=16000"]
    status, said = t4p(files, *RUN, *growing)
    assert status == 1
    named = re.search(
        rf"{NOT_FINITE}, which may change now: the command goes on from step (\d+); from step (\d+) it", said
    )
    assert named, said
    good, dead_end = map(int, named.groups())
    assert good == dead_end - 1
    calmer = ["train.learning_rate=1e-3", "train.gradient_clipping=0.5", f"train.num_steps={dead_end + 2}"]
    status, said = t4p(files, *RUN, *calmer)
    assert status == 0, said
    assert f"{checkpoint_name(dead_end)}: the step after it was not finite" in said
    changes = "train.learning_rate: 16000.0 -> 0.001, train.warmup_steps: 39 -> 0, train.gradient_clipping: 1.0 -> 0.5"
    assert f"after a step that was not finite, from step {good} on with {changes}" in said
    notes = [json.loads(line) for line in (files["run"] / "not_finite.jsonl").read_text().splitlines()]
    assert [note.get("step", note.get("resumed")) for note in notes] == [dead_end + 1, good]
    assert notes[1]["changes"] == changes.split(", ")
    status, said = t4p(files, *RUN, *calmer, "train.learning_rate=1e-4")
    assert status == 1, "past that step the rate stands again"
    assert "train.learning_rate: 0.001 -> 0.0001" in said
