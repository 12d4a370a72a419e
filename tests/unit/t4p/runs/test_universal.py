"""Universal checkpoints as files: made once, never used half-made, replaced when damaged."""

import shutil

import pytest
from saved_checkpoint import MODEL, save_checkpoint

from t4p.errors import CheckpointError
from t4p.runs.checkpoint import CheckpointState, newest_checkpoint, read_state, verify_marker, write_marker
from t4p.runs.universal import is_universal, leftovers_of, made_from, make_universal, universal_of

STATE = CheckpointState(120, 2, {"train": {"zero_stage": 1}}, (), "", {})


@pytest.fixture
def checkpoint(tmp_path):
    return save_checkpoint(tmp_path / "step_00000120", STATE)


def convert(source, destination):
    (destination / "zero" / "layer.weight").mkdir(parents=True)
    (destination / "zero" / "layer.weight" / "fp32.pt").write_bytes((source / MODEL).read_bytes())
    shutil.copy(source / MODEL, destination / MODEL)
    (destination.parent / "latest_universal").write_text(destination.name)


def refuse(source, destination):
    raise AssertionError("converted again")


def test_it_is_made_once_and_counts_by_its_own_marker(checkpoint):
    said = []
    universal = universal_of(checkpoint)
    make_universal(checkpoint, universal, convert, said.append)
    assert universal.name == "step_00000120.universal"
    verify_marker(universal)
    verify_marker(checkpoint)
    assert is_universal(universal)
    assert not is_universal(checkpoint)
    assert read_state(universal) == STATE
    assert len(said) == 1
    assert {path.name for path in checkpoint.parent.iterdir()} == {"step_00000120", "step_00000120.universal"}
    make_universal(checkpoint, universal, refuse, said.append)
    assert len(said) == 1
    assert newest_checkpoint(checkpoint.parent) == (checkpoint, [])  # never chosen in place of the checkpoint


def test_an_interrupted_conversion_is_not_used_and_is_made_again(checkpoint):
    class Killed(BaseException):
        pass

    def die_halfway(source, destination):
        convert(source, destination)
        raise Killed

    universal = universal_of(checkpoint)
    with pytest.raises(Killed):
        make_universal(checkpoint, universal, die_halfway, print)
    assert not universal.exists()
    (partial,) = leftovers_of(checkpoint)
    assert partial.name.startswith("step_00000120.universal.partial-")
    said = []
    make_universal(checkpoint, universal, convert, said.append)
    verify_marker(universal)
    assert said[0].startswith(f"{partial}: a conversion that was cut short")
    assert leftovers_of(checkpoint) == [partial, universal]


def test_one_of_an_earlier_save_of_the_step_is_made_again(checkpoint):
    universal = universal_of(checkpoint)
    make_universal(checkpoint, universal, convert, print)
    (checkpoint / MODEL).write_bytes(b"Weights")
    (checkpoint / "COMPLETE.json").unlink()
    write_marker(checkpoint)
    assert not made_from(universal, checkpoint)
    said = []
    make_universal(checkpoint, universal, convert, said.append)
    assert said[0] == f"made again, since {universal}: was not made from {checkpoint} as it is now"
    assert made_from(universal, checkpoint)
    assert (universal / "zero" / "layer.weight" / "fp32.pt").read_bytes() == b"Weights"


def test_of_two_conversions_at_once_the_first_to_end_stays(checkpoint):
    universal = universal_of(checkpoint)

    def overtaken(source, destination):
        make_universal(checkpoint, universal, convert, lambda sentence: None)
        inode.append(universal.stat().st_ino)
        convert(source, destination)

    inode = []
    make_universal(checkpoint, universal, overtaken, lambda sentence: None)
    assert universal.stat().st_ino == inode[0]
    verify_marker(universal)
    assert leftovers_of(checkpoint) == [universal]


@pytest.mark.parametrize("damage", ["no marker", "flipped"])
def test_a_damaged_one_is_made_again(checkpoint, damage):
    universal = universal_of(checkpoint)
    make_universal(checkpoint, universal, convert, print)
    if damage == "no marker":
        (universal / "COMPLETE.json").unlink()
    else:
        (universal / "zero" / "layer.weight" / "fp32.pt").write_bytes(b"Weights")
    said = []
    make_universal(checkpoint, universal, convert, said.append)
    verify_marker(universal)
    assert said[0].startswith("made again, since ")


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("file write failed\nC++ stack")]
)
def test_a_failed_conversion_names_the_cause_and_leaves_the_checkpoint(checkpoint, error):
    def fail(source, destination):
        convert(source, destination)
        raise error

    with pytest.raises(CheckpointError) as caught:
        make_universal(checkpoint, universal_of(checkpoint), fail, print)
    message = str(caught.value)
    assert message.startswith(f"{checkpoint}: cannot be converted for another number of ranks")
    assert str(error).splitlines()[0] in message
    assert "C++" not in message
    assert "MB are free there" in message
    assert "untouched" in message
    verify_marker(checkpoint)
    assert leftovers_of(checkpoint) == []
