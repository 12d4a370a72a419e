"""The run folder: proved to be shared, resumed from or begun, and left with logs closed."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from t4p.config import PretrainConfig, dump_config
from t4p.errors import ConfigError, RunError
from t4p.train.checkpoint import (
    CheckpointState,
    newest_checkpoint,
    read_state,
    refuse_changes,
    verify_marker,
    write_atomically,
)
from t4p.train.distributed import all_reduce_sum, broadcast_object, rank, world_size
from t4p.train.engine import Engine, local_device
from t4p.train.logging import RunLog, StepRecord
from t4p.train.loop import LoopSettings

RECORDED_VERSIONS = ("torch", "deepspeed", "open_clip_torch", "numpy", "text4point")


@contextmanager
def open_run(
    config: PretrainConfig,
    engine: Engine,
    shards_sha256: tuple[str, ...],
    towers: Mapping[str, str],
    on_step: Callable[[StepRecord], None] | None,
) -> Iterator[tuple[LoopSettings, RunLog | None]]:
    """Begin or resume a run in `run.dir`. Collective.

    Yields:
        Where the loop starts, and rank 0's log (None on the others), which is closed at the end.

    Raises:
        CheckpointError: the checkpoint to resume from is damaged, or does not fit this configuration.
        RunError: not all ranks see the same folder.
    """
    run_dir = Path(config.run.dir)
    prove_shared(run_dir)
    checkpoints = run_dir / "checkpoints"
    dumped = config.model_dump(mode="json")
    checkpoint = choose_checkpoint(config.train.resume, checkpoints)

    def describe(step: int) -> CheckpointState:
        versions = {name: version(name) for name in RECORDED_VERSIONS} | {"python": platform.python_version()}
        return CheckpointState(step, world_size(), dumped, shards_sha256, dict(towers), versions)

    start_step = 0
    if checkpoint is not None:
        saved = read_state(checkpoint)
        refuse_changes(saved, describe(saved.step), checkpoint)
        torch.set_rng_state(engine.load(checkpoint.parent, checkpoint.name)["torch_rng"])
        start_step = saved.step
    log = None
    if rank() == 0:
        write_atomically(run_dir / "config.yaml", dump_config(config))
        log = RunLog(run_dir, start_step)
    try:
        yield LoopSettings(start_step, checkpoints, describe, on_step), log
    finally:
        if log is not None:
            log.close()


def prove_shared(run_dir: Path) -> None:
    """Check that every rank sees what rank 0 writes into the run folder. Collective.

    Raises:
        ConfigError: the folder cannot be made.
        RunError: it is not the same folder on all ranks.
    """
    token = str(uuid.uuid4())
    proof = run_dir / ".shared"
    problem = ""
    if rank() == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(proof, token)
        except OSError as error:
            problem = f"run.dir {run_dir}: cannot be written ({error}); set run.dir to a folder that can"
    token, problem = broadcast_object((token, problem))
    if problem:
        raise ConfigError(problem)
    seen = proof.is_file() and proof.read_text() == token
    num_seen = int(all_reduce_sum(torch.tensor(int(seen), device=local_device())))
    if num_seen < world_size():
        raise RunError(
            f"run.dir {run_dir}: {num_seen} of {world_size()} ranks see the same folder; "
            "set it to one that all nodes share (NFS, Lustre, FSx)"
        )


def choose_checkpoint(resume: str, checkpoints: Path) -> Path | None:
    """Rank 0 decides what to resume from, and tells the others. Collective.

    Raises:
        CheckpointError: a named checkpoint is not whole.
        ConfigError: `train.resume=never` in a folder that has checkpoints.
    """
    choice: Path | None = None
    problem: Exception | None = None
    if rank() == 0:
        try:
            choice = _choose(resume, checkpoints)
        except (ConfigError, RunError) as error:
            problem = error
    choice, problem = broadcast_object((choice, problem))
    if problem is not None:
        raise problem
    return choice


def _choose(resume: str, checkpoints: Path) -> Path | None:
    if resume not in ("auto", "never"):
        verify_marker(Path(resume))
        return Path(resume)
    newest, passed_over = newest_checkpoint(checkpoints)
    if resume == "never":
        if newest is not None:
            raise ConfigError(
                f"train.resume is 'never', but {checkpoints} holds {newest.name}; "
                "choose another run.dir, or set train.resume=auto"
            )
        return None
    for sentence in passed_over:
        print(f"passed over: {sentence}", flush=True)  # noqa: T201
    if newest is not None:
        print(f"resuming from {newest}", flush=True)  # noqa: T201
    return newest
