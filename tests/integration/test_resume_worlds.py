"""A run that goes on with another number of ranks: 2, then 1, 3 and 2 again, against one that stays at 2.

Real gloo ranks, real DeepSpeed, the entry point that every worker runs. One set of processes per leg takes all ZeRO
stages in turn.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from forks import run_python
from rank_processes import start_ranks
from small_model import SMALL

from shards.packing.pack import pack
from t4p.models.exported import load_exported
from t4p.runs.checkpoint import MARKER, verify_marker

pytestmark = pytest.mark.usefixtures("forked_python")

STAGES = (0, 1, 2, 3)
LEGS = ((2, 2), (1, 4), (3, 6), (2, 8))  # (world size, up to this step)
NUM_STEPS = LEGS[-1][1]
OVERRIDES = [
    *SMALL,
    "run.seed=3",
    f"train.num_steps={NUM_STEPS}",
    "train.checkpoint_every=2",
    "train.keep_checkpoints=10",
    "train.warmup_steps=2",
    "train.global_batch_size=3",
]

WORKER = Path(__file__).with_name("resume_worker.py")
KILLED_AT = "step_00000004"


def do(folder: Path, name: str, world_size: int, runs: list[dict]) -> tuple[list[int], str]:
    """Do these runs (resume_worker.Run) in turn on the same ranks; their exit statuses, and what they said."""
    with start_ranks([sys.executable, str(WORKER), json.dumps(runs)], world_size, folder / f"logs-{name}") as ranks:
        return ranks.statuses(), ranks.said()


@contextmanager
def small_disk(folder, size_bytes):
    """A file system of that size, empty; yields None where this user may not mount one."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tum_sample):
    """Every run that the tests below look at; one set of processes for each number of ranks.

    Each stage once at 2 ranks throughout (`whole`) and once through all LEGS (`moving`); a run that is killed in the
    middle of writing a checkpoint and goes on (`killed`); and what is refused or fails in between.
    """
    folder = tmp_path_factory.mktemp("worlds")
    shards = folder / "shards"
    pack("tum", tum_sample, str(shards))

    def run(notes, stage, run_dir, last_step=NUM_STEPS, *more, killed_writing=None):
        overrides = [*OVERRIDES, f"data.shards=[{shards}]", f"train.zero_stage={stage}", f"run.dir={run_dir}", *more]
        return {
            "notes": str(folder / "notes" / notes),
            "overrides": overrides,
            "last_step": last_step,
            "killed_writing": killed_writing,
        }

    def whole(stage):
        return run(f"whole-{stage}", stage, folder / f"whole-{stage}")

    def moving(leg, stages=STAGES):
        return [run(f"leg{leg}-{stage}", stage, folder / f"moving-{stage}", LEGS[leg][1]) for stage in stages]

    apart = run("apart", 1, f"{folder}/apart-{{rank}}")
    # Stage 3 comes last in a process: DeepSpeed replaces torch's linear for good, by one that rounds differently.
    first = [*map(whole, STAGES[:-1]), *moving(0, STAGES[:-1]), whole(STAGES[-1]), *moving(0, STAGES[-1:]), apart]
    statuses, output = do(folder, "0", 2, first)
    assert statuses == [0, 0], output

    calls = json.dumps([run("killed", 1, folder / "killed", killed_writing=KILLED_AT)])
    with start_ranks([sys.executable, str(WORKER), calls], 2, folder / "logs-killed") as ranks:
        ranks.processes[1].wait(600)
        statuses = ranks.statuses(60)  # seconds for the one that is left, on a machine that does other work
    (folder / "notes" / "killed" / "statuses.json").write_text(json.dumps(statuses))
    shutil.copytree(folder / "killed" / "checkpoints", folder / "as-the-kill-left-it")

    statuses, output = do(folder, "1", 1, moving(1))
    assert statuses == [0], output

    saved = folder / "whole-1" / "checkpoints" / f"step_{NUM_STEPS:08d}"
    size_bytes = sum(path.stat().st_size for path in saved.iterdir())
    with small_disk(folder / "full-a", 2 * size_bytes) as disk:
        full = []
        if disk is not None:
            shutil.copytree(saved, disk / "checkpoints" / saved.name)
            full = [run("full-convert", 1, disk, NUM_STEPS + 2, f"train.num_steps={NUM_STEPS + 2}")]
        statuses, output = do(folder, "2", 3, [*moving(2), *full])
        assert statuses == [0, 0, 0], output
        if disk is not None:
            shutil.copytree(disk / "checkpoints", folder / "after-full-convert")

    with small_disk(folder / "full-b", int(1.5 * size_bytes)) as disk:
        full = [run("full-save", 1, disk)] if disk is not None else []
        resumed = run("resumed", 1, folder / "killed")
        statuses, output = do(folder, "3", 2, [*moving(3, STAGES[:-1]), resumed, *moving(3, STAGES[-1:]), *full])
        assert set(statuses) <= {0, 1}, output  # 1: a rank that lost the other one
        (folder / "notes" / "resumed" / "output.txt").write_text(output)
        if disk is not None:
            shutil.copytree(disk / "checkpoints", folder / "after-full-save")
    return folder


def losses(run_dir):
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder, index, stage, moment, rank):
    return torch.load(folder / f"notes/leg{index}-{stage}" / f"{moment}-{rank}.pt")


def keys_of_steps(folder, name):
    """The keys that all ranks read, per step."""
    per_rank = [json.loads(path.read_text()) for path in sorted((folder / "notes" / name).glob("keys-*.json"))]
    return [sorted(key for keys in step for key in keys) for step in zip(*per_rank, strict=True)]


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_samples_step_by_step(runs, stage):
    moving = [step for index in range(len(LEGS)) for step in keys_of_steps(runs, f"leg{index}-{stage}")]
    assert len(moving) == NUM_STEPS
    assert all(len(keys) == 3 for keys in moving)
    assert moving == keys_of_steps(runs, f"whole-{stage}")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("index", range(1, len(LEGS)))
def test_everything_comes_back_bit_for_bit(runs, stage, index):
    saved = snapshot(runs, index - 1, stage, "after", 0)
    for rank in range(LEGS[index][0]):
        loaded = snapshot(runs, index, stage, "before", rank)
        for kind in ("parameters", "weights", "buffers", "exp_avg", "exp_avg_sq", "optimizer"):
            assert saved[kind].keys() == loaded[kind].keys()
            for name, value in saved[kind].items():
                assert torch.equal(value, loaded[kind][name]), f"rank {rank}: {kind} {name}"
        assert saved["optimizer"]["steps"].tolist() == [LEGS[index - 1][1]] * 2
        assert saved["optimizer"]["weight_decay"].unique().numel() == 2
        assert sum(name.endswith("running_mean") and value.any() for name, value in saved["buffers"].items()) > 5
        for name, value in saved["outputs"].items():
            assert torch.equal(value, loaded["outputs"][name]), f"rank {rank}: eval-mode {name}"


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_of_the_run_that_stayed(runs, stage):
    whole, moving = losses(runs / f"whole-{stage}"), losses(runs / f"moving-{stage}")
    assert len(whole) == NUM_STEPS
    assert moving[:2] == whole[:2]
    assert moving == pytest.approx(whole, rel=1e-5)  # measured: 8e-8
    assert moving[-1] != moving[0]


@pytest.mark.parametrize("stage", STAGES)
def test_stage_0_needs_no_conversion_and_the_others_one_each(runs, stage):
    names = {path.name for path in (runs / f"moving-{stage}" / "checkpoints").glob("step_*")}
    plain = {f"step_{step:08d}" for step in (2, 4, 6, 8)}
    assert names == plain | ({f"step_{step:08d}.universal" for step in (2, 4, 6)} if stage else set())


def test_a_rank_killed_while_it_writes_a_checkpoint_ends_the_run_and_costs_nothing(runs):
    statuses = json.loads((runs / "notes" / "killed" / "statuses.json").read_text())
    assert statuses[1] == -signal.SIGKILL
    # A lost rank is not a failed write: whoever restarts runs must be able to tell.
    assert statuses[0] == 1
    assert not (runs / "notes" / "killed" / "error-0.txt").exists()
    left = runs / "as-the-kill-left-it"
    verify_marker(left / "step_00000002")
    assert [path.name for path in (left / KILLED_AT).glob("*_rank_1_*")] != []
    assert not (left / KILLED_AT / MARKER).exists()

    output = (runs / "notes" / "resumed" / "output.txt").read_text()
    assert f"{KILLED_AT}: no {MARKER}" in output
    checkpoints = runs / "killed" / "checkpoints"
    assert f"resuming from {checkpoints / 'step_00000002'}" in output
    assert (checkpoints / f"{KILLED_AT}.incomplete-0").is_dir()
    assert losses(runs / "killed") == losses(runs / "whole-1")
    resumed, whole = (torch.load(runs / "notes" / name / "after-0.pt") for name in ("resumed", "whole-1"))
    for kind, values in whole.items():
        for name, value in values.items():
            assert torch.equal(value, resumed[kind][name]), f"{kind} {name}"


def errors(runs, name):
    return [path.read_text() for path in sorted((runs / "notes" / name).glob("error-*.txt"))]


def test_a_full_disk_during_a_conversion_is_told_on_every_rank_and_leaves_the_checkpoint(runs):
    if not (runs / "after-full-convert").exists():
        pytest.skip("needs the right to mount a small file system")
    found = errors(runs, "full-convert")
    assert len(found) == 3
    for error in found:
        assert error.startswith("CheckpointError: ")
        assert "cannot be converted for another number of ranks" in error
        assert "0.0 MB are free" in error or "MB are free there" in error
        assert "t4p checkpoint convert" in error
    verify_marker(runs / "after-full-convert" / "step_00000008")
    assert [path.name for path in (runs / "after-full-convert").iterdir()] == ["step_00000008"]


def test_a_full_disk_during_a_save_ends_every_rank_and_keeps_the_checkpoint_before(runs):
    if not (runs / "after-full-save").exists():
        pytest.skip("needs the right to mount a small file system")
    found = errors(runs, "full-save")
    assert found
    assert all("step_00000004: rank" in error and "could not write it" in error for error in found)
    verify_marker(runs / "after-full-save" / "step_00000002")
    assert not (runs / "after-full-save" / "step_00000004" / MARKER).exists()


def test_a_folder_that_not_all_ranks_share_is_refused_on_all_of_them(runs):
    found = errors(runs, "apart")
    assert len(found) == 2
    assert all("1 of 2 ranks see the same folder" in error for error in found)
    assert not (runs / "apart-0" / "metrics.jsonl").exists()


EXPORT = """
import json, sys
from commands.checkpoint import app
for arguments in json.loads(sys.argv[1]):
    app(arguments, standalone_mode=False)
"""
READ = """
import json, sys, torch
from t4p.models.exported import load_exported
for path, out in json.loads(sys.argv[1]):
    exported = load_exported(path)
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 2, 3]], dtype=torch.int32)
    expanded, decoded = exported.net(coords, torch.ones(3, 3), exported.label_embeddings)
    assert not any(part.training for part in (exported.net, exported.decoder2d))
    torch.save([expanded, decoded], out)
assert not {"deepspeed", "open_clip"} & set(sys.modules), "reading an export must not need them"
"""


def test_an_export_holds_the_trained_weights_and_is_read_without_deepspeed(runs, clean_environ):
    files = {stage: runs / f"stage-{stage}.safetensors" for stage in STAGES}
    checkpoints = {stage: runs / f"whole-{stage}" / "checkpoints" / "step_00000008" for stage in STAGES}
    calls = [["export", str(checkpoints[stage]), str(path)] for stage, path in files.items()]
    elsewhere = runs / "elsewhere"
    calls.append(["convert", str(checkpoints[2]), "--out", str(elsewhere)])
    done = run_python(["-c", EXPORT, json.dumps(calls)])
    assert done.returncode == 0, done.stdout + done.stderr
    reads = [[str(path), str(path.with_suffix(".pt"))] for path in files.values()]
    script([READ, json.dumps(reads)], clean_environ)
    for stage, path in files.items():
        exported = load_exported(path)
        assert exported.step == NUM_STEPS
        assert exported.config.train.zero_stage == stage
        assert exported.labels == exported.config.model.labels
        assert exported.label_embeddings.shape == (len(exported.labels), exported.net.expand.out_features)
        trained = torch.load(runs / "notes" / f"whole-{stage}" / "after-0.pt")
        for part in ("net", "decoder2d"):
            state = getattr(exported, part).state_dict()
            assert state
            for name, value in state.items():
                kind = "parameters" if f"{part}.{name}" in trained["parameters"] else "buffers"
                assert torch.equal(value, trained[kind][f"{part}.{name}"]), f"stage {stage}: {part}.{name}"
        scale = trained["parameters"]["log_logit_scale_e"].exp().item()
        assert exported.logit_scale_e == pytest.approx(scale, rel=1e-6)
        assert all(torch.isfinite(output).all() for output in torch.load(path.with_suffix(".pt")))
    verify_marker(elsewhere)
    verify_marker(runs / "whole-2" / "checkpoints" / "step_00000008")


def script(arguments, environ):
    done = subprocess.run([sys.executable, "-c", *arguments], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
