"""Inside `reading_is_not_running` a pickle cannot call anything, whoever reads it and however it was asked for."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from saved_checkpoint import Touches

from t4p.errors import CheckpointError
from t4p.train.safe_reading import FORCE, FORCE_NOT, reading_is_not_running


@dataclass
class Record:
    value: int


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_nothing_that_a_file_names_is_called(tmp_path, legacy):
    proof = tmp_path / "proof"
    file = tmp_path / "step_00000003" / "part.pt"
    file.parent.mkdir()
    saved = {"tensor": torch.ones(2), "evil": Touches(proof)}
    torch.save(saved, file, _use_new_zipfile_serialization=not legacy)
    with (
        pytest.raises(CheckpointError, match=r"step_00000003.*names posix\.system.*nothing of it was run") as caught,
        reading_is_not_running(file.parent, ()),
    ):
        torch.load(file, weights_only=False)
    assert not proof.exists()
    assert ("part.pt: names" in str(caught.value)) == (not legacy)


def test_the_advice_to_read_it_without_the_lock_is_not_passed_on(tmp_path):
    file = tmp_path / "part.pt"
    file.write_bytes(b"\x80\x02\x95 no pickle that torch would read")
    with pytest.raises(CheckpointError, match="no saved tensors") as caught, reading_is_not_running(tmp_path, ()):
        torch.load(file, weights_only=False)
    assert "weights_only" not in str(caught.value)
    assert re.search(r"no saved tensors \([A-Za-z]", str(caught.value)), "says why"


def test_a_listed_class_is_made_and_another_is_not(tmp_path):
    for name, value in (("record", Record(3)), ("fraction", Fraction(1, 3))):
        torch.save(value, tmp_path / f"{name}.pt")
    with reading_is_not_running(tmp_path, (Record,)):
        assert torch.load(tmp_path / "record.pt", weights_only=False) == Record(3)
    with (
        pytest.raises(CheckpointError, match=r"fraction\.pt: names fractions\.Fraction"),
        reading_is_not_running(tmp_path, (Record,)),
    ):
        torch.load(tmp_path / "fraction.pt", weights_only=False)


@pytest.mark.parametrize("before", [{}, {FORCE: "0"}, {FORCE_NOT: "1"}])
def test_the_rest_of_the_process_reads_as_before(tmp_path, monkeypatch, before):
    for name in (FORCE, FORCE_NOT):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "value.pt"
    torch.save(Fraction(1, 3), file)
    with pytest.raises(CheckpointError), reading_is_not_running(tmp_path, ()):
        torch.load(file, weights_only=False)
    assert {name: os.environ[name] for name in (FORCE, FORCE_NOT) if name in os.environ} == before
    assert torch.load(file, weights_only=False) == Fraction(1, 3)
