"""SIGKILL in the middle, start again: the run is the one that was never interrupted, bit for bit.

Every run is a process of its own (tests/forks.py).
"""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from forks import forks, run_python
from saved_checkpoint import Touches
from small_model import SMALL

from shards.packing.pack import pack
from t4p.runs.checkpoint import write_marker

pytestmark = pytest.mark.usefixtures("forked_python")

FRAMES = Path(__file__).parents[1] / "data" / "tum_rgbd" / "rgbd_dataset_freiburg1_rpy"
NUM_STEPS = 8
OVERRIDES = [
    *SMALL,
    f"train.num_steps={NUM_STEPS}",
    "train.checkpoint_every=3",
    "train.warmup_steps=2",
    "data.num_workers=1",
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tum") / "shards"
    pack("tum", FRAMES, str(folder))
    return folder


def command(shards, run_dir, *overrides):
    return [
        *("-m", "commands.main", "pretrain", "configs/smoke.yaml", *OVERRIDES),
        *(f"data.shards=[{shards}]", f"run.dir={run_dir}", *overrides),
    ]


def run(shards, run_dir, *overrides):
    return run_python(command(shards, run_dir, *overrides), timeout=300)


def kill_at(shards, run_dir, step, *overrides):
    """Start a run and SIGKILL it as soon as it has logged `step`."""
    process = forks().start(command(shards, run_dir, *overrides), Path(run_dir).with_suffix(".killed"))
    deadline = time.monotonic() + 240
    while len(metrics(run_dir)) < step:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()


def metrics(run_dir):
    path = Path(run_dir) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def losses(run_dir):
    return [(line["step"], line["loss"], line["loss_e"], line["loss_d"]) for line in metrics(run_dir)]


def weights(run_dir, step):
    path = Path(run_dir) / "checkpoints" / f"step_{step:08d}" / "mp_rank_00_model_states.pt"
    return torch.load(path, weights_only=False)["module"]


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run")
    result = run(shards, run_dir)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_a_run_leaves_what_the_readme_says(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "tensorboard"} <= names
    assert [step for step, *_ in losses(uninterrupted)] == list(range(1, NUM_STEPS + 1))
    assert {path.name for path in (uninterrupted / "checkpoints").glob("step_*")} == {
        "step_00000003",
        "step_00000006",
        "step_00000008",
    }


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_going_on_from_a_checkpoint_of_somebody_else_runs_nothing_that_is_in_it(shards, uninterrupted, tmp_path, name):
    run_dir = Path(shutil.copytree(uninterrupted, tmp_path / "run"))
    checkpoint = run_dir / "checkpoints" / "step_00000008"
    content = torch.load(checkpoint / name, weights_only=False)
    torch.save({**content, "evil": Touches(tmp_path / "proof")}, checkpoint / name)
    (checkpoint / "COMPLETE.json").unlink()
    write_marker(checkpoint)
    result = run(shards, run_dir, "train.num_steps=9")
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{name}: names posix.system, which no checkpoint of this program does" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "proof").exists()


def test_no_tower_weight_is_in_a_checkpoint(uninterrupted):
    state = weights(uninterrupted, NUM_STEPS)
    tops = {name.split(".")[0] for name in state}
    assert tops == {"net", "decoder2d", "log_logit_scale_e", "log_logit_scale_d"}
    recorded = json.loads((uninterrupted / "checkpoints" / "step_00000008" / "state.json").read_text())
    assert len(recorded["towers_sha256"]) == 64
    assert recorded["step"] == NUM_STEPS


@pytest.mark.parametrize("step", [2, 5, 7])
def test_a_killed_run_resumes_bit_for_bit(shards, uninterrupted, tmp_path, step):
    kill_at(shards, tmp_path, step)
    # The kill comes some steps late on a busy machine, perhaps after the first checkpoint.
    saved = (tmp_path / "checkpoints" / "step_00000003" / "COMPLETE.json").exists()
    assert saved or step < 3
    result = run(shards, tmp_path)
    assert result.returncode == 0, result.stderr
    assert ("resuming from" in result.stdout) == saved
    assert losses(tmp_path) == losses(uninterrupted)
    before, after = weights(uninterrupted, NUM_STEPS), weights(tmp_path, NUM_STEPS)
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_a_longer_run_goes_on_where_a_shorter_one_ended(shards, uninterrupted, tmp_path):
    assert run(shards, tmp_path, "train.num_steps=6", "train.checkpoint_every=2").returncode == 0
    result = run(shards, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    assert [step for step, *_ in losses(tmp_path)] == list(range(1, NUM_STEPS + 1))


def test_a_checkpoint_without_its_marker_is_passed_over_and_kept(shards, uninterrupted, tmp_path):
    # As a run leaves it that is killed after step 7; a real one might get to its end first.
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000008")
    directory = tmp_path / "checkpoints" / "step_00000006"
    (directory / "COMPLETE.json").unlink()
    result = run(shards, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "passed over" in result.stdout
    assert "step_00000006: no COMPLETE.json" in result.stdout
    assert "step_00000003" in result.stdout
    assert losses(tmp_path) == losses(uninterrupted)
    assert (tmp_path / "checkpoints" / "step_00000006.incomplete-0" / "mp_rank_00_model_states.pt").is_file()


@pytest.fixture(scope="module")
def calls(shards, uninterrupted, tmp_path_factory):
    """What becomes of calls that must not train, by name: (run folder, result)."""
    folder = tmp_path_factory.mktemp("calls")
    pack("tum", FRAMES, str(folder / "fewer"), frames=slice(0, 3))
    unmarked = folder / "unmarked" / "step_00000003"
    unmarked.mkdir(parents=True)
    planned = {
        "unmarked": (shards, f"train.resume={unmarked}"),
        "changed": (shards, "train.learning_rate=0.5", "model.voxel_size=0.2", "train.num_steps=9"),
        "never": (shards, "train.resume=never"),
        "fewer": (folder / "fewer", "train.num_steps=9"),
        "finished": (shards,),
    }

    def call(name):
        run_dir, (frames, *overrides) = folder / f"run-{name}", planned[name]
        if name != "unmarked":
            shutil.copytree(uninterrupted, run_dir)
        return run_dir, run(frames, run_dir, *overrides)

    return {name: call(name) for name in planned}


def test_naming_a_checkpoint_without_its_marker_is_refused(calls):
    run_dir, result = calls["unmarked"]
    assert result.returncode == 2
    assert f"{run_dir.parent / 'unmarked' / 'step_00000003'}: no COMPLETE.json" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (run_dir / "metrics.jsonl").exists()


def test_a_changed_configuration_is_refused_and_the_keys_are_named(calls):
    _, result = calls["changed"]
    assert result.returncode == 1
    assert "train.learning_rate: 0.003 -> 0.5" in result.stderr
    assert "model.voxel_size: 0.1 -> 0.2" in result.stderr
    assert "num_steps" not in result.stderr
    assert "Traceback" not in result.stderr


def test_resume_never_refuses_a_folder_with_checkpoints(calls):
    run_dir, result = calls["never"]
    assert result.returncode == 2
    assert "choose another run.dir" in result.stderr
    assert len(metrics(run_dir)) == NUM_STEPS


def test_other_frames_behind_the_same_url_are_refused(calls):
    _, result = calls["fewer"]
    assert result.returncode == 1
    assert "the datasets hold other samples" in result.stderr


def test_a_finished_run_ends_at_once_and_changes_nothing(calls, uninterrupted):
    run_dir, result = calls["finished"]
    assert result.returncode == 0, result.stderr
    assert losses(run_dir) == losses(uninterrupted)


@pytest.mark.parametrize("precision", ["bf16"])
def test_bf16_resumes_bit_for_bit_too(shards, tmp_path, precision):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(shards, whole, f"train.precision={precision}").returncode == 0
    kill_at(shards, killed, 5, f"train.precision={precision}")
    assert run(shards, killed, f"train.precision={precision}").returncode == 0
    assert losses(killed) == losses(whole)
