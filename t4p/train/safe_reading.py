"""Reading a checkpoint is not running it: torch makes tensors, plain values and listed classes of it, nothing else.

A `.pt` file is a pickle, and a pickle may name any function of any package and have it called.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from shards.doors.text import shown
from t4p.errors import CheckpointError

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # torch refuses to read anything where both are set


@contextmanager
def reading_is_not_running(checkpoint: Path, allowed: Sequence[type]) -> Iterator[None]:
    """Inside, no `torch.load` of this process calls what a file names, whatever its caller asks for.

    DeepSpeed asks for `weights_only=False` everywhere; torch's own variable overrides that.

    Args:
        checkpoint: what is read, for the message.
        allowed: classes that may be made beyond what torch allows by itself.

    Raises:
        CheckpointError: a file names something else. It was not called.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(list(allowed)):
            try:
                yield
            except pickle.UnpicklingError as error:
                raise CheckpointError(_describe(checkpoint, error)) from error
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _describe(checkpoint: Path, error: pickle.UnpicklingError) -> str:
    for path in sorted(checkpoint.rglob("*.pt")):
        with suppress(Exception):  # another of its files may be what is damaged, in any way
            if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
                return (
                    f"{path}: names {', '.join(sorted(names))}, which no checkpoint of this program does; nothing of "
                    "it was run. Whoever made this file may mean harm: use a checkpoint that you or somebody you "
                    "trust has written"
                )
    named = re.search(r"GLOBAL (\S+)", str(error))
    # torch goes on to advise weights_only=False.
    reason = re.search(r"WeightsUnpickler error: *(.+)", str(error))
    why = (shown(reason[1]) if reason else "").strip() or type(error).__name__
    what = f"names {named[1]}" if named else f"has a file that is no saved tensors ({why})"
    return f"{checkpoint}: {what}; nothing of it was run. Use a checkpoint that you or somebody you trust has written"
