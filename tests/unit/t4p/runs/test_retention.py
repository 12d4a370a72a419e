"""What a run deletes of its own, over all small cases and on files."""

import itertools
import shutil

import pytest
from saved_checkpoint import MODEL, save_checkpoint

from t4p.runs.checkpoint import MARKER, CheckpointState, checkpoint_name
from t4p.runs.retention import delete_expired, expired

STEPS = (1, 2, 3, 5, 8, 13)


@pytest.mark.parametrize("keep", range(1, 8))
@pytest.mark.parametrize("written", STEPS)
def test_the_newest_stay_and_nothing_else_is_touched(written, keep):
    for size in range(len(STEPS) + 1):
        for others in itertools.combinations(STEPS, size):
            whole = {*others, written}
            gone = expired(whole, written, keep)
            assert set(gone) <= whole
            assert gone == sorted(set(gone))
            assert written not in gone
            earlier = {step for step in whole if step <= written}
            kept = earlier - set(gone)
            assert len(kept) == min(keep, len(earlier))
            assert all(old < new for old in gone for new in kept)
            assert not {step for step in whole if step > written} & set(gone)


def test_the_order_and_repetitions_do_not_matter():
    assert expired([4, 2, 8, 6, 2, 4], 8, 2) == expired([2, 4, 6, 8], 8, 2) == [2, 4]


def make(folder, step, marker=True, universal=False):
    directory = folder / checkpoint_name(step)
    for path in [directory, *([directory.with_name(directory.name + ".universal")] if universal else [])]:
        state = CheckpointState(step, 1, {"train": {"zero_stage": 0}}, (), "", {})
        save_checkpoint(path, state, bytes(100), marker=marker)
    return directory


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_has_no_marker_is_damaged_or_comes_later_is_neither_counted_nor_deleted(tmp_path):
    for step in (10, 20, 30, 50, 60):
        make(tmp_path, step, universal=step == 10)
    make(tmp_path, 15, marker=False)
    (make(tmp_path, 40) / MODEL).write_bytes(b"short")
    make(tmp_path, 5).rename(tmp_path / "step_00000005.incomplete-0")
    make(tmp_path, 900)  # of a run that was resumed from 50, since this one was damaged
    assert delete_expired(tmp_path, written=60, keep=2) == []
    assert names(tmp_path) == [
        "step_00000005.incomplete-0",
        "step_00000015",
        "step_00000040",
        "step_00000050",
        "step_00000060",
        "step_00000900",
    ]


def test_a_killed_deletion_leaves_nothing_that_looks_whole_and_is_finished_later(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        make(tmp_path, step, universal=True)

    class Killed(BaseException):
        pass

    def die_halfway(folder):
        next(path for path in folder.iterdir() if path.name != MARKER).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", die_halfway)
    with pytest.raises(Killed):
        delete_expired(tmp_path, written=3, keep=2)
    whole = {"step_00000001", "step_00000002", "step_00000002.universal", "step_00000003", "step_00000003.universal"}
    assert set(names(tmp_path)) == whole | {"step_00000001.universal.deleted"}
    monkeypatch.undo()
    assert delete_expired(tmp_path, written=3, keep=2) == []
    assert set(names(tmp_path)) == whole - {"step_00000001"}


def test_a_deletion_that_is_refused_is_told_and_ends_nothing(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        make(tmp_path, step)

    def refuse(folder):
        raise PermissionError(f"may not delete {folder.name}")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    problems = delete_expired(tmp_path, written=3, keep=1)
    assert len(problems) == 2
    assert f"{tmp_path}/step_00000001: could not be deleted (may not delete step_00000001.deleted)" in problems
    assert names(tmp_path) == ["step_00000001.deleted", "step_00000002.deleted", "step_00000003"]
