"""Loader processes that may be lost: killed by the system, stopped, hung in a file. Others take their place.

What a loader makes depends on the reference alone, so nothing is lost with it but time. torch's own means of noticing
work in the main thread only (a signal handler), or wait for the other half of a message: so its loader runs in a thread
of its own here, which is left alone where it waits for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkContext, ForkProcess
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from t4p.errors import LostLoaderError
from t4p.heartbeat import Standstill, beat
from t4p.stop import leave_signals_alone

Ref = TypeVar("Ref")
Sample = TypeVar("Sample")
Batch = TypeVar("Batch")

LOOK_EVERY = 0.5  # seconds between two looks at the loaders, while nothing comes from them
# Seconds without a batch after which loaders are taken for hung. Half of train.step_timeout's default: the other ranks
# wait meanwhile.
PATIENCE = 300.0
MOST_LOST, SOON = 5, 100  # as often within so many batches something is wrong that other loaders do not mend
ENDED_WITHIN = 5.0  # seconds in which a killed process is gone, if it can go
_SHARED_MEMORY = Path("/dev/shm")  # where torch puts the tensors that one process hands to another
LITTLE_SHARED_MEMORY = 512 << 20  # bytes; containers give 64 MB, and who goes beyond is killed by a bus error
_END = object()
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt


class _LostLoader(Exception):
    """What happened to a loader, in words."""

    def __init__(self, what: str, next_move: str) -> None:
        """Say `what`; where it happens again, `next_move` too."""
        super().__init__(what)
        self.next_move = next_move


def load(
    dataset: Dataset[Sample],
    refs_from: Callable[[int], Iterable[list[Ref]]],
    num_workers: int,
    collate: Callable[[list[Sample]], Batch],
    patience: float = PATIENCE,
) -> Iterator[Batch]:
    """What becomes of each list of references, in order.

    Args:
        dataset: given a reference, makes its sample: the same one in every process.
        refs_from: the lists, from the n-th on.
        num_workers: loader processes; 0 loads in this one.
        collate: what is made of the samples of a list, in the process that made them.
        patience: seconds without any batch after which the loaders are replaced.

    Raises:
        LostLoaderError: loaders are lost at the same list a second time, or MOST_LOST times within SOON lists.
    """
    if num_workers == 0:
        for refs in refs_from(0):
            yield collate([dataset[ref] for ref in refs])
        return
    num_done, lost_at = 0, deque[int](maxlen=MOST_LOST)
    while True:
        loaders = _Loaders(dataset, refs_from(num_done), num_workers, collate)
        try:
            while (batch := loaders.next(patience)) is not _END:
                yield batch
                num_done += 1
            return
        except _LostLoader as lost:
            if num_done in lost_at:
                raise LostLoaderError(f"{lost}, a second time at the same samples; {lost.next_move}") from None
            lost_at.append(num_done)
            if len(lost_at) == MOST_LOST and num_done - lost_at[0] < SOON:
                raise LostLoaderError(
                    f"{lost}, for the {MOST_LOST}th time within {num_done - lost_at[0]} batches; {lost.next_move}"
                ) from None
            print(f"{lost}; other loaders take its place", flush=True)  # noqa: T201
            beat("loaders take the place of others")
        finally:
            loaders.close()


class _Loaders(Generic[Sample]):
    """One set of loader processes, and the thread that receives from them."""

    def __init__(
        self, dataset: Dataset[Sample], refs: Iterable[list[Any]], num_workers: int, collate: Callable[[Any], Any]
    ) -> None:
        self._context = _KnownProcesses()
        self._received: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._receive, args=(dataset, refs, num_workers, collate, started), name="t4p-receiver", daemon=True
        )
        self._thread.start()
        started.wait()  # this thread stands still while processes are forked: they get its locks as they are

    def next(self, patience: float) -> Any:
        """The next batch, or _END."""
        waiting = Standstill(patience, longest=4 * LOOK_EVERY)
        looked = time.monotonic()
        while True:
            try:
                received = self._received.get(timeout=LOOK_EVERY)
            except queue.Empty:
                now = time.monotonic()
                self._look(waiting.is_over(0, now - looked), patience)
                looked = now
                continue
            if isinstance(received, Exception):
                for process in self._context.started:
                    # One that is lost with a batch on its way shows in the batch before the system has noted its end.
                    process.join(0.2)
                self._look(hung=False, patience=patience)  # torch's words for a lost loader say less
                raise received
            return received

    def _look(self, hung: bool, patience: float) -> None:
        for process in self._context.started:
            if process.exitcode is not None:
                raise _LostLoader(
                    f"loader process {process.pid} {_describe_end(process.exitcode)}",
                    "where memory is short, lower data.num_workers, or set it to 0 to see what happens there",
                )
        if hung:
            states = ", ".join(f"{process.pid} is {_state(process.pid)}" for process in self._context.started)
            raise _LostLoader(
                f"nothing came from the loader processes for {patience:.0f} s ({states})",
                "see whether the disk or storage of the data answers; if they were at work, raise train.step_timeout",
            )

    def close(self) -> None:
        """End the processes; what cannot end is left to itself.

        That is one in a call to a disk that hangs, which no signal reaches, and the thread where it waits for the other
        half of a message.
        """
        self._closed.set()
        for process in self._context.started:
            process.kill()
        end = time.monotonic() + ENDED_WITHIN
        for process in self._context.started:
            process.join(max(0.0, end - time.monotonic()))
        self._thread.join(timeout=1.0)

    def _receive(
        self,
        dataset: Dataset[Sample],
        refs: Iterable[list[Any]],
        num_workers: int,
        collate: Callable[[Any], Any],
        started: threading.Event,
    ) -> None:
        by_pipe = _is_shared_memory_little()
        try:
            loader: DataLoader[Any] = DataLoader(
                dataset,
                batch_sampler=_Batches(refs),
                num_workers=num_workers,
                collate_fn=_Pickled(collate) if by_pipe else collate,
                worker_init_fn=_begin_worker,
                prefetch_factor=2,
                multiprocessing_context=self._context,
                generator=torch.Generator(),  # or it draws from the one that the training draws from
            )
            batches = iter(loader)
            started.set()
            for received in batches:
                if not self._put(pickle.loads(received) if by_pipe else received):
                    return
            self._put(_END)
        except Exception as error:
            self._put(error)
        finally:
            started.set()

    def _put(self, received: Any) -> bool:
        """Whether somebody still wanted it."""
        while not self._closed.is_set():
            try:
                self._received.put(received, timeout=LOOK_EVERY)
            except queue.Full:
                continue
            return True
        return False


@dataclass(frozen=True)
class _Pickled:
    """What `collate` makes, as bytes: its tensors too, which go through the pipe then."""

    collate: Callable[[Any], Any]

    def __call__(self, samples: list[Any]) -> bytes:
        return pickle.dumps(self.collate(samples), protocol=pickle.HIGHEST_PROTOCOL)


def _is_shared_memory_little() -> bool:
    """Whether batches had better not go through shared memory."""
    try:
        facts = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return True
    return facts.f_bavail * facts.f_frsize < LITTLE_SHARED_MEMORY


class _Batches:
    """Lists of references, as what torch takes for a sampler."""

    def __init__(self, refs: Iterable[list[Any]]) -> None:
        self._refs = refs

    def __iter__(self) -> Iterator[list[Any]]:
        return iter(self._refs)


class _KnownProcesses(ForkContext):
    """Starts processes as ever, and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[ForkProcess] = []

    def Process(self, *args: Any, **kwargs: Any) -> ForkProcess:  # type: ignore[override]
        process = ForkProcess(*args, **kwargs)
        self.started.append(process)
        return process


def _describe_end(exitcode: int) -> str:
    if exitcode == -signal.SIGKILL:
        return "was killed (signal 9; the system does that where memory runs out)"
    return f"was ended by signal {-exitcode}" if exitcode < 0 else f"ended with status {exitcode}"


def _state(pid: int | None) -> str:
    """What the system says a process does: "stopped", "sleeping", "disk sleep", ..."""
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                if line.startswith("State:"):
                    return line.partition("(")[2].strip().rstrip(")")
    except OSError:
        pass
    return "there"


def _begin_worker(worker_id: int) -> None:
    # Ctrl-C reaches the whole process group; the training process ends its loaders, they need not print anything.
    leave_signals_alone()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    gc.freeze()  # what it was forked with stays: looking through it again and again copies every page of it
    _keep_freed_memory()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _keep_freed_memory() -> None:
    """Leave to the process what it frees, where the C library is glibc.

    It gives the arrays of every frame back to the system and takes them anew, 5,000 page faults a frame: a seventh of
    the time of a loader.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        libc.mallopt(_M_MMAP_THRESHOLD, 16 << 20)


def _end_with(parent: int) -> None:
    """End this loader where its training process was killed.

    torch's own loaders notice, but then wait for ever until somebody has read what they still have to send.
    """
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
