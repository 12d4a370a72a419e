"""A checkpoint from somebody else whose files run a command when they are unpickled, and whose marker is in order.

The checkpoint is a real one of two ranks at ZeRO 1 (tests/data/older). Going on from one is in test_resume.py.
"""

import shutil
from pathlib import Path

import pytest
import torch
from saved_checkpoint import Touches
from typer.testing import CliRunner

from commands.checkpoint import app
from t4p.errors import CheckpointError
from t4p.runs.checkpoint import MARKER, write_marker
from t4p.runs.universal import leftovers_of
from t4p.train.engine import saved_weights

OLDER = Path(__file__).resolve().parents[1] / "data" / "older"
FILES = [
    "mp_rank_00_model_states.pt",
    "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "zero_pp_rank_1_mp_rank_00_optim_states.pt",
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLDER / "runs" / "pretrain", tmp_path / "run"))


def poison(run_dir: Path, name: str) -> Path:
    """The checkpoint, with a command in one of its files."""
    checkpoint = run_dir / "checkpoints" / "step_00000002"
    content = torch.load(checkpoint / name, weights_only=False)
    torch.save({**content, "evil": Touches(run_dir / "proof")}, checkpoint / name)
    (checkpoint / MARKER).unlink()
    write_marker(checkpoint)
    return checkpoint


@pytest.mark.parametrize("name", FILES)
def test_reading_and_converting_it_run_nothing_and_name_the_file(run_dir: Path, name: str) -> None:
    checkpoint = poison(run_dir, name)
    with pytest.raises(
        CheckpointError, match=rf"{name}: names posix\.system, which no checkpoint of this program does"
    ):
        saved_weights(checkpoint, zero_stage=1)
    converted = CliRunner().invoke(app, ["convert", str(checkpoint)])
    assert isinstance(converted.exception, CheckpointError)
    assert f"{name}: names posix.system" in str(converted.exception)
    assert leftovers_of(checkpoint) == []
    assert not (run_dir / "proof").exists()
