"""Checkpoints with all files that a run's have, by name, and nothing in them: for tests of what counts as one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from t4p.runs.checkpoint import CheckpointState, write_marker, write_state

MODEL = "mp_rank_00_model_states.pt"


class Touches:
    """An object whose pickle makes an empty file when it is read as one."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.proof}'",)


def save_checkpoint(
    directory: Path, state: CheckpointState, content: bytes = b"weights", *, marker: bool = True
) -> Path:
    """Write the module's file with this content, the parts of the ranks that the state speaks of, and the state.

    Args:
        state: its configuration has a ZeRO stage.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stage = state.config["train"]["zero_stage"]
    ranks = range(state.world_size)
    names = [f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in ranks] if stage == 3 else [MODEL]
    names += [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in ranks] if stage else []
    for name in names:
        (directory / name).write_bytes(content)
    write_state(directory, state)
    if marker:
        write_marker(directory)
    return directory
