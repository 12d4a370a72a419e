"""What a run folder says of what was not finite, and how a run goes on."""

import pytest
from saved_checkpoint import save_checkpoint

from t4p.errors import CheckpointError
from t4p.runs.checkpoint import MARKER, CheckpointState, checkpoint_name, marker_sha256, newest_checkpoint
from t4p.runs.compatibility import freed_keys, refuse_changes
from t4p.runs.going_on import how_it_goes_on, move_after_not_finite
from t4p.runs.not_finite import NOT_FINITE, dead_ends, note_changes, note_not_finite, was_not_finite_after

REMEDY = "lower train.learning_rate, lengthen train.warmup_steps or lower train.gradient_clipping"

SAME = "it comes to the same at any rate"
FIRST = (
    "no learning rate changes what comes before the first update: check the data with `t4p shards verify DATASET`, and "
    "what the run begins with"
)


def state(step, **train):
    given = {"zero_stage": 1, "learning_rate": 1.0, "warmup_steps": 0, "gradient_clipping": 1.0, "weight_decay": 0.1}
    return CheckpointState(step, 1, {"train": given | train}, (), "", {})


@pytest.fixture
def checkpoints(tmp_path):
    """Of a run that saved steps 5 and 10."""
    for step in (5, 10):
        save_checkpoint(tmp_path / "checkpoints" / checkpoint_name(step), state(step))
    return tmp_path / "checkpoints"


def test_notes_come_back_and_torn_ones_are_no_notes(tmp_path):
    assert not was_not_finite_after(tmp_path, 0)
    note_not_finite(tmp_path, 12, "the loss is nan", "")
    note_changes(tmp_path, 10, ["train.learning_rate: 1 -> 0.1"])
    note_not_finite(tmp_path, 11, "the loss is inf", "f" * 64)
    with (tmp_path / NOT_FINITE).open("a") as file:
        file.write('null\n{"step": "x", "dead_end": "a"}\n{"step": 99, "dea')
    assert [was_not_finite_after(tmp_path, step) for step in (10, 11, 12)] == [True, True, False]
    assert dead_ends(tmp_path) == {"f" * 64}


@pytest.mark.parametrize(
    ("step", "began_after", "move"),
    [
        (12, 0, f"{REMEDY}, which may change now: the command goes on from step 10"),
        (11, None, f"{REMEDY}, which may change now: the command goes on from step 10"),
        (11, 10, f"{REMEDY}, which may change now: the command goes on from step 5; from step 10 {SAME}"),
        (6, 0, f"{REMEDY}, and begin again in another run.dir: step 5 alone is saved, and from there {SAME}"),
        (4, 0, f"{REMEDY}, and start again: nothing is saved yet, so the command begins again"),
        (1, None, f"{REMEDY}, and start again: nothing is saved yet, so the command begins again"),
        (1, 0, FIRST),
    ],
)
def test_the_next_move_is_one_that_is_there(checkpoints, step, began_after, move):
    assert move_after_not_finite(checkpoints, "auto", step, began_after) == move


def test_the_next_move_of_a_run_that_named_a_checkpoint(checkpoints, tmp_path):
    empty = tmp_path / "other" / "checkpoints"
    assert move_after_not_finite(empty, "run/x", 8, 7).startswith("it follows from run/x at any rate: set train.resume")
    assert move_after_not_finite(empty, "run/x", 9, 7).endswith("so the command begins again from run/x")
    said = move_after_not_finite(checkpoints, "run/x", 12, 7)
    assert said.endswith("the command with train.resume=auto goes on from step 10")


def test_what_is_saved_is_told_as_it_is(checkpoints, tmp_path):
    newest = checkpoints / "step_00000010"
    assert how_it_goes_on(checkpoints, "auto") == f"saved step 10; the same command goes on from it ({newest})"
    assert "; the same command with train.resume=auto goes on from it (" in how_it_goes_on(checkpoints, "never")
    assert how_it_goes_on(tmp_path / "none", "never") == "nothing is saved yet: the same command begins again"
    assert how_it_goes_on(tmp_path / "none", "run/x").endswith("begins again from run/x")


def test_notes_that_cannot_be_read_are_no_empty_notes(checkpoints):
    (checkpoints.parent / "not_finite.jsonl").mkdir()
    with pytest.raises(CheckpointError, match=r"cannot be read .* move it away"):
        newest_checkpoint(checkpoints)


def test_a_checkpoint_that_nothing_can_go_on_from_is_passed_over_until_it_is_written_anew(checkpoints):
    newest = checkpoints / checkpoint_name(10)
    note_not_finite(checkpoints.parent, 11, "the loss is nan", marker_sha256(newest))
    chosen, passed_over = newest_checkpoint(checkpoints)
    assert chosen == checkpoints / checkpoint_name(5)
    assert "step_00000010: the step after it was not finite" in passed_over[0]
    assert how_it_goes_on(checkpoints, "auto").startswith("saved step 5;")
    (newest / MARKER).unlink()
    save_checkpoint(newest, state(10), b"other weights")
    assert newest_checkpoint(checkpoints)[0] == newest


def test_what_helps_may_change_after_a_step_that_was_not_finite_and_nothing_else(tmp_path):
    saved, now = state(10), state(10, learning_rate=0.1, warmup_steps=4, gradient_clipping=0.5)
    with pytest.raises(CheckpointError, match=r"train\.learning_rate(.*\n)*.*train\.gradient_clipping"):
        refuse_changes(saved, now, tmp_path, freed_keys([tmp_path], 10))
    note_not_finite(tmp_path, 12, "the loss is nan", "")
    assert freed_keys([tmp_path], 12) == ()
    freed = freed_keys([tmp_path / "another", tmp_path], 10)
    changes = refuse_changes(saved, now, tmp_path, freed)
    assert "train.learning_rate: 1.0 -> 0.1" in changes
    assert len(changes) == 3
    with pytest.raises(CheckpointError, match=r"changed:\n  train\.weight_decay: 0\.1 -> 0\.2\ntake"):
        refuse_changes(saved, state(10, learning_rate=0.1, weight_decay=0.2), tmp_path, freed)
