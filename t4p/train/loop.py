"""The training loop, for every task."""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor, nn

from t4p.config.run import TrainConfig
from t4p.data.stream import TrainingStream
from t4p.distributed import all_reduce_sum, barrier, rank, world_size
from t4p.errors import CheckpointError, NotFiniteError
from t4p.heartbeat import beat, beating_while_files_move, tell_first_step
from t4p.models.norm import merge_running_statistics
from t4p.runs.checkpoint import (
    MARKER,
    CheckpointState,
    await_files,
    checkpoint_name,
    first_line,
    free_space,
    make_room,
    marker_sha256,
    write_marker,
    write_state,
)
from t4p.runs.going_on import how_it_goes_on, move_after_not_finite
from t4p.runs.logs import RunLog, StepRecord
from t4p.runs.not_finite import NOT_FINITE, note_not_finite
from t4p.runs.progress import print_line
from t4p.runs.retention import delete_expired
from t4p.stop import ask, asked
from t4p.train.engine import Engine, local_device

Batch = TypeVar("Batch")
Batch_contra = TypeVar("Batch_contra", contravariant=True)


class Task(Protocol[Batch_contra]):
    """One job: what its module takes, what its outputs are called, and how it is scored.

    Attributes:
        term_names: names of the module's outputs; the first is the loss to minimise, all are logged.
    """

    @property
    def term_names(self) -> Sequence[str]: ...

    def inputs(self, batch: Batch_contra) -> tuple[Tensor, ...]:
        """The arguments of the module for one micro-batch."""

    def check(self, record: StepRecord) -> None:
        """Look at a step before it is logged; RunError if there is no point in going on. The same on every rank."""

    def validate(self, module: nn.Module) -> Mapping[str, float]:
        """Scores on the validation data, over all ranks; empty where there is none. Collective."""


@dataclass(frozen=True)
class LoopSettings:
    """Where the loop starts and what it writes besides losses.

    Attributes:
        checkpoints: folder of the run's checkpoints.
        describe: the `state.json` of a checkpoint at a step.
        on_step: called on every rank after every step.
    """

    start_step: int
    seed: int
    checkpoints: Path
    describe: Callable[[int], CheckpointState]
    on_step: Callable[[StepRecord], None] | None


def train(
    engine: Engine,
    task: Task[Batch],
    stream: TrainingStream[Any, Batch],
    config: TrainConfig,
    settings: LoopSettings,
    log: RunLog | None,
) -> None:
    """Train from `start_step` to `config.num_steps`. Collective: every rank takes the same number of steps.

    Where any rank was asked to end (t4p/stop.py), all save after the same step and return.

    Args:
        log: rank 0's; None on the other ranks.
    """
    engine.module.train()
    if settings.start_step == 0:
        _validate(engine, task, 0, log)
    batches = stream.batches(settings.start_step, config.num_steps)
    for step in range(settings.start_step + 1, config.num_steps + 1):
        # What torch draws in a step belongs to the step: nothing of it needs to be in a checkpoint.
        _seed(settings.seed + step * world_size() + rank())
        started, data_wait = time.perf_counter(), 0.0
        learning_rate = scheduled_learning_rate(step, config.num_steps, config.warmup_steps, config.learning_rate)
        terms_so_far = torch.zeros(len(task.term_names), dtype=torch.float64)
        skipped_before, faults_before, fetched_before = (
            stream.num_skipped,
            stream.storage_faults.total(),
            stream.fetched,
        )
        for _ in range(config.grad_accum_steps):
            beat(f"step {step}, waiting for samples")
            batch, waited = _timed_next(batches)
            beat(f"step {step}")
            terms = engine.forward(*task.inputs(batch))
            engine.backward(terms[0])
            engine.step(learning_rate)
            terms_so_far += torch.stack([term.detach().double().cpu() for term in terms]) / config.grad_accum_steps
            data_wait += waited
        fetched = stream.fetched - fetched_before
        counts = (
            stream.num_skipped - skipped_before,
            stream.storage_faults.total() - faults_before,
            not engine.statistics_are_finite(),
            bool(asked()),
            fetched.requests,
            fetched.num_bytes,
            fetched.hits,
        )
        sums = all_reduce_sum(torch.cat([terms_so_far, terms_so_far.new_tensor(counts)]).to(local_device()))
        *terms_of_all, num_skipped, num_faults, num_overflown, num_asked, num_requests, num_bytes, num_hits = (
            sums.tolist()
        )
        means = [term / world_size() for term in terms_of_all]
        tell_first_step()

        seconds = time.perf_counter() - started
        record = StepRecord(
            step=step,
            terms=dict(zip(task.term_names, means, strict=True)),
            learning_rate=learning_rate,
            gradient_norm=engine.gradient_norm(),
            samples_seen=step * config.global_batch_size,
            samples_skipped=int(num_skipped),
            samples_per_second=config.global_batch_size / seconds,
            seconds=seconds,
            data_wait=data_wait,
            storage_faults=int(num_faults),
            fetch_requests=int(num_requests),
            fetch_bytes=int(num_bytes),
            cache_hits=int(num_hits),
        )
        if what := _what_is_not_finite(record, record.terms[task.term_names[0]], bool(num_overflown)):
            _end_not_finite(step, what, settings.checkpoints, config.resume, settings.start_step)
        task.check(record)
        if log is not None:
            log.step(record)
        if settings.on_step is not None:
            settings.on_step(record)
        last = step == config.num_steps
        is_due = last or (config.validate_every and step % config.validate_every == 0)
        if is_due and not num_asked:
            _validate(engine, task, step, log)
        if last or num_asked or step % config.checkpoint_every == 0:
            save_checkpoint(engine, settings.checkpoints, settings.describe(step), config.keep_checkpoints)
            if log is not None:
                log.checkpoint(step)
        if num_asked:
            if is_due:  # after the save: it may take longer than train.save_on_stop
                _validate(engine, task, step, log)
            ask(asked() or signal.SIGTERM)  # every rank has been asked now
            return


def scheduled_learning_rate(step: int, num_steps: int, warmup_steps: int, peak: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero after the last step.

    Args:
        step: counts from 1; step `warmup_steps` + 1 is the first at the peak.
    """
    if step <= warmup_steps:
        return peak * step / (warmup_steps + 1)
    progress = (step - 1 - warmup_steps) / (num_steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def save_checkpoint(engine: Engine, checkpoints: Path, state: CheckpointState, keep: int) -> None:
    """Write one checkpoint, its marker last, and delete whole ones beyond the newest `keep`. Collective.

    Raises:
        NotFiniteError: on every rank, if what one of them would write is not finite; nothing was written.
        CheckpointError: this rank cannot write a file, or rank 0 does not see those of the others. No collective
            follows: the process should end, and the others' wait for it with it.
        RuntimeError: another rank was lost meanwhile, as in any collective.
    """
    name = checkpoint_name(state.step)
    directory = checkpoints / name
    resume = state.config["train"]["resume"]
    merge_running_statistics(engine.module)
    if all_reduce_sum(torch.tensor(int(not engine.is_finite()), device=local_device())):
        _end_not_finite(state.step, "the weights or their optimizer are not finite after it", checkpoints, resume, None)
    try:
        if rank() == 0:
            make_room(directory)
            checkpoints.mkdir(parents=True, exist_ok=True)
        barrier()
        with beating_while_files_move(f"saving {name}"):
            engine.save(checkpoints, name)
        barrier()  # every rank's files are there
        if rank() == 0:
            await_files(directory, engine.num_part_files(world_size()))
            write_state(directory, state)
            with beating_while_files_move(f"hashing {name}"):
                write_marker(directory)
        barrier()  # nobody goes on, and perhaps dies, before the checkpoint counts
    except (OSError, RuntimeError) as error:
        if not _is_about_files(error):
            raise
        raise CheckpointError(
            f"{directory}: rank {rank()} could not write it ({first_line(error)}); {free_space(checkpoints)}. It has "
            f"no marker, so it will not be used; make room and start again: {how_it_goes_on(checkpoints, resume)}"
        ) from error
    if rank() == 0:
        for sentence in delete_expired(checkpoints, state.step, keep):
            print_line(sentence)


def _what_is_not_finite(record: StepRecord, loss: float, overflown: bool) -> str:
    """What of a step is not finite and follows from the weights before it, "" for nothing. The same on every rank.

    Args:
        overflown: whether running statistics of some rank are not finite.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not math.isfinite(record.gradient_norm):  # DeepSpeed leaves such a step out (stage 0 takes it) and is silent
        return f"the loss is {loss:g}, but its gradient is not finite"
    return f"the loss is {loss:g}, but the running statistics are not finite" if overflown else ""


def _end_not_finite(step: int, what: str, checkpoints: Path, resume: str, began_after: int | None) -> NoReturn:
    """End the run with the next move, and note in its folder that it was not finite.

    Args:
        began_after: as in `move_after_not_finite`.
    """
    move = move_after_not_finite(checkpoints, resume, step, began_after)
    if rank() == 0:
        before = checkpoints / checkpoint_name(step - 1)
        try:
            stuck = began_after is not None and (before / MARKER).exists()
            note_not_finite(checkpoints.parent, step, what, marker_sha256(before) if stuck else "")
        except OSError as error:
            move = f"that could not be noted in {checkpoints.parent / NOT_FINITE} ({error}): make room and start again"
    raise NotFiniteError(f"step {step}: {what}; {move}")


def _is_about_files(error: Exception) -> bool:
    """torch reports a full disk as a RuntimeError, and a lost rank too: where it was raised tells which."""
    frames = traceback.walk_tb(error.__traceback__)
    return isinstance(error, OSError) or any(
        frame.f_code.co_filename == torch.serialization.__file__ for frame, _ in frames
    )


def _validate(engine: Engine, task: Task[Any], step: int, log: RunLog | None) -> None:
    merge_running_statistics(engine.module)
    with engine.whole_module() as module:
        scores = task.validate(module)
        module.train()
    if scores and log is not None:
        log.validation(step, scores)


def _seed(seed: int) -> None:
    """Seed the generators that a step may draw from.

    torch.manual_seed does the same and, for every kind of device that is not there, formats a stack trace.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed(seed)


def _timed_next(batches: Iterator[Batch]) -> tuple[Batch, float]:
    started = time.perf_counter()
    batch = next(batches)
    return batch, time.perf_counter() - started
