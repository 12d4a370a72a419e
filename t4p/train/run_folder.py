"""The run folder: proved to be shared, resumed from or begun, and left with logs closed."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO
from uuid import uuid4

import torch

from shards.terms import DatasetTerms
from t4p.config.files import dump_config
from t4p.config.kinds import task_named
from t4p.config.tasks import JobConfig
from t4p.data.order import ORDER_VERSION
from t4p.distributed import all_reduce_sum, broadcast_object, rank, world_size
from t4p.errors import CheckpointError, ConfigError, RunError
from t4p.heartbeat import beating_while_files_move
from t4p.runs.checkpoint import (
    MARKER,
    SHARED_FOLDER_PATIENCE,
    CheckpointState,
    as_checkpoint,
    checkpoints_in,
    newest_checkpoint,
    read_state,
    verify_marker,
    write_atomically,
)
from t4p.runs.compatibility import freed_keys, refuse_changes
from t4p.runs.lock import describe_taken, take_lock
from t4p.runs.logs import RunLog, StepRecord
from t4p.runs.not_finite import note_changes
from t4p.runs.progress import Show, Tracker, print_line
from t4p.runs.terms import Terms
from t4p.runs.universal import is_universal, made_from, make_universal, universal_of
from t4p.train.engine import Engine, convert_to_universal, local_device
from t4p.train.loop import LoopSettings

RECORDED_VERSIONS = ("torch", "deepspeed", "open_clip_torch", "numpy", "text4point")


@contextmanager
def open_run(
    config: JobConfig,
    build_engine: Callable[[Path | None], Engine],
    shards_sha256: tuple[str, ...],
    towers_sha256: str,
    datasets: tuple[DatasetTerms, ...],
    began_with: Callable[[], tuple[DatasetTerms, ...]],
    on_step: Callable[[StepRecord], None] | None,
    show: Show,
) -> Iterator[tuple[Engine, LoopSettings, RunLog | None]]:
    """Begin or resume a run in `run.dir`. Collective.

    Args:
        build_engine: given the checkpoint that the engine will load; None begins.
        datasets: those that are trained on.
        began_with: of a run that begins, those that its first weights were trained on.
        show: told on rank 0 how the training goes.

    Yields:
        The engine in the state to go on from, where the loop starts, and rank 0's log (None on the others), which is
        closed at the end.

    Raises:
        CheckpointError: the checkpoint to resume from is damaged, does not fit this configuration, or cannot be
            converted for this number of ranks.
        RunError: not all ranks see the same folder, or another run is in it.
    """
    run_dir = Path(config.run.dir)
    lock = claim(run_dir)
    prove_shared(run_dir)
    checkpoints = run_dir / "checkpoints"
    dumped, versions = config.model_dump(mode="json"), installed_versions()
    with beating_while_files_move("looking for a checkpoint"):
        checkpoint = choose_checkpoint(config.train.resume, checkpoints)
    changes: tuple[str, ...] = ()
    terms = Terms(datasets)

    def describe(step: int) -> CheckpointState:
        hashes = (shards_sha256, towers_sha256)
        return CheckpointState(step, world_size(), dumped, *hashes, versions, ORDER_VERSION, terms)

    if checkpoint is None:
        engine, start_step = build_engine(None), 0
        terms = replace(terms, began_with=began_with())
    else:
        saved = read_state(checkpoint)
        freed = freed_keys({run_dir, checkpoint.absolute().parent.parent}, saved.step)
        terms = replace(terms, began_with=saved.terms.naming(saved.config).began_with)
        changes = refuse_changes(saved, describe(saved.step), checkpoint, freed)
        loadable = fit_to_world(checkpoint, saved)
        engine, start_step = build_engine(loadable), saved.step
        with beating_while_files_move(f"loading {loadable.name}"):
            engine.load(loadable.parent, loadable.name)
    log = None
    if rank() == 0:
        try:
            write_atomically(run_dir / "config.yaml", dump_config(config))
            if changes:
                note_changes(run_dir, start_step, changes)
                print_line(f"after a step that was not finite, from step {start_step} on with " + ", ".join(changes))
            tracker = Tracker(config.train.num_steps, task_named(config.task).scores, start_step or None, show)
            log = RunLog(run_dir, start_step, tracker)
        except OSError as error:
            raise _unwritable(run_dir, error) from error
        share = f"{config.train.global_batch_size / world_size() / config.train.grad_accum_steps:g}"
        left = f"steps {start_step + 1} on" if start_step < config.train.num_steps else "every step is taken already"
        if start_step == 0 and config.data.validation_shards:
            left += ", after a first validation"
        print_line(f"{world_size()} rank(s), {share} frame(s) each per micro-batch, {left}")
    try:
        yield engine, LoopSettings(start_step, config.run.seed, checkpoints, describe, on_step), log
    finally:
        if log is not None:
            log.close()
        if lock is not None:
            lock.close()


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages that a checkpoint records."""
    return {name: _version(name) for name in RECORDED_VERSIONS} | {"python": platform.python_version()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on a cluster the project's source travels with the job, uninstalled
        return "not installed"


def fit_to_world(checkpoint: Path, saved: CheckpointState) -> Path:
    """What this number of ranks can load: the checkpoint, or the universal one that rank 0 makes of it. Collective.

    The other ranks wait for rank 0 in a collective, as long as files move.

    Raises:
        CheckpointError: on every rank, if the conversion fails.
    """
    if saved.world_size == world_size() or saved.config["train"]["zero_stage"] == 0 or is_universal(checkpoint):
        return checkpoint
    universal = universal_of(checkpoint)
    problem: CheckpointError | None = None
    if rank() == 0:
        print_line(f"{checkpoint} was written by {saved.world_size} rank(s), this run has {world_size()}")
        try:
            with beating_while_files_move(f"converting {checkpoint.name}"):
                make_universal(checkpoint, universal, convert_to_universal, print_line)
        except CheckpointError as error:
            problem = error
    problem = broadcast_object(problem)
    if problem is not None:
        raise problem
    return universal


def claim(run_dir: Path) -> IO[str] | None:
    """Make the run folder and lock it against a second run, until this process ends. Collective.

    Returns:
        The lock, held while the file is open: on rank 0, None elsewhere.

    Raises:
        ConfigError: the folder cannot be made.
        RunError: another run is in it.
    """
    lock: IO[str] | None = None
    problem: Exception | None = None
    if rank() == 0:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            lock = take_lock(run_dir)
        except BlockingIOError:
            problem = RunError(describe_taken(run_dir))
        except OSError as error:
            problem = _unwritable(run_dir, error)
    problem = broadcast_object(problem)
    if problem is not None:
        raise problem
    return lock


def prove_shared(run_dir: Path) -> None:
    """Check that every rank sees what rank 0 writes into the run folder. Collective.

    Raises:
        ConfigError: rank 0 cannot write into it.
        RunError: it is not the same folder on all ranks.
    """
    # A new name each time: a network file system may show another node the old content of a name for some seconds.
    token = uuid4().hex
    problem: ConfigError | None = None
    if rank() == 0:
        try:
            write_atomically(run_dir / f".shared-{token}", token)
        except OSError as error:
            problem = _unwritable(run_dir, error)
    token, problem = broadcast_object((token, problem))
    if problem is not None:
        raise problem
    proof = run_dir / f".shared-{token}"
    deadline = time.monotonic() + SHARED_FOLDER_PATIENCE
    while not (seen := _holds(proof, token)) and time.monotonic() < deadline:
        time.sleep(0.1)
    num_seen = int(all_reduce_sum(torch.tensor(int(seen), device=local_device())))
    if rank() == 0:
        proof.unlink(missing_ok=True)
    if num_seen < world_size():
        raise RunError(
            f"run.dir {run_dir}: {num_seen} of {world_size()} ranks see the same folder; "
            "set it to one that all nodes share (NFS, Lustre, FSx)"
        )


def _unwritable(run_dir: Path, error: OSError) -> ConfigError:
    return ConfigError(f"run.dir {run_dir}: cannot be written ({error}); make room, or set run.dir to another folder")


def _holds(path: Path, content: str) -> bool:
    try:
        return path.read_text() == content
    except OSError:
        return False


def choose_checkpoint(resume: str, checkpoints: Path) -> Path | None:
    """Rank 0 decides what to resume from, and tells the others. Collective.

    Raises:
        CheckpointError: a named checkpoint is not whole, or none of those that were once written to their end is.
        ConfigError: `train.resume` is `never`, or names a checkpoint, in a folder that has others.
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
        named = as_checkpoint(Path(resume), print_line)
        verify_marker(named)
        newest, _ = newest_checkpoint(checkpoints)
        if newest is not None and not _same_checkpoint(named, newest):
            raise ConfigError(
                f"train.resume is {resume}, but {checkpoints} holds {newest.name}: going on from another one would mix "
                "two runs; choose another run.dir (it may begin from this checkpoint), or set train.resume=auto"
            )
        return named
    newest, passed_over = newest_checkpoint(checkpoints)
    if newest is None and any(_has_marker(directory) for directory in checkpoints_in(checkpoints)):
        # To begin anew here would empty the logs of a run that was saved, and perhaps by a mistake that can be undone.
        listed = "\n".join(f"  {sentence}" for sentence in passed_over)
        raise CheckpointError(
            f"{checkpoints}: holds checkpoints, but no whole one to resume from:\n{listed}\n"
            "restore one from a copy, or choose another run.dir; to begin anew in this one, move its checkpoints away"
        )
    if resume == "never":
        if newest is not None:
            raise ConfigError(
                f"train.resume is 'never', but {checkpoints} holds {newest.name}; "
                "choose another run.dir, or set train.resume=auto"
            )
        return None
    for sentence in passed_over:
        print_line(f"passed over: {sentence}")
    if newest is not None:
        print_line(f"resuming from {newest}")
    return newest


def _has_marker(directory: Path) -> bool:
    """Whether a checkpoint was once written to its end; what cannot be looked at may have been."""
    try:
        (directory / MARKER).lstat()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def _same_checkpoint(named: Path, newest: Path) -> bool:
    """Whether a path is the newest checkpoint, or its universal form, wherever that was written."""
    if is_universal(named):
        return made_from(named, newest)
    return named.resolve() == newest.resolve()
