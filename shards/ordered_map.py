"""A function over many items in worker processes, results in the order of the items.

Why not concurrent.futures: its workers share one queue, which keeps them waiting for ever when the parent is killed,
and its results pile up when the consumer is slower. Here every worker has a pipe of its own: it ends when its parent
is gone, however that happened, and it stops and waits when its results are not taken.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from shards.errors import ShardError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # items a worker has been given and not handed over: one in work, one finished or waiting
_PATIENCE = 5.0  # seconds for a worker to end by itself


def ordered_map(function: Callable[[Item], Result], items: Sequence[Item], num_workers: int) -> Generator[Result]:
    """Yield function(item) for every item, in order. Close the iterator (`contextlib.closing`) to end the workers.

    Args:
        function: picklable; called in a worker, or here when there is one worker.
        items: picklable each.
        num_workers: processes; item i goes to worker i mod num_workers.

    Raises:
        ShardError: as the function raised it, or a worker died.
        RuntimeError: the function raised anything else; the worker's traceback is in the message.
    """
    num_workers = min(num_workers, len(items))
    if num_workers <= 1:
        yield from map(function, items)
        return
    # Spawned, not forked: the parent may hold threads (a progress bar, boto3) that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    workers: list[tuple[SpawnProcess, Connection]] = []
    try:
        resource_tracker.ensure_running()  # would unblock SIGINT in the middle of the first start
        for _ in range(num_workers):
            workers.append(_start_worker(context, function))
        for i, item in enumerate(items[: _AHEAD * num_workers]):
            _send(workers[i % num_workers], item)
        for i in range(len(items)):
            worker = workers[i % num_workers]
            result = _receive(worker)
            if i + _AHEAD * num_workers < len(items):
                _send(worker, items[i + _AHEAD * num_workers])
            yield result
        for _, connection in workers:
            connection.close()
        for process, _ in workers:
            process.join(_PATIENCE)
    finally:
        for process, connection in workers:
            connection.close()
            process.terminate()
        for process, _ in workers:
            process.join(_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()


def _start_worker(context: Any, function: Callable[[Any], Any]) -> tuple[SpawnProcess, Connection]:
    ours, theirs = context.Pipe()
    # A terminal sends Ctrl-C to the workers as well: they are started with it blocked, and leave it to the parent.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process = context.Process(target=_work, args=(theirs, function), daemon=True)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return process, ours


def _work(connection: Connection, function: Callable[[Any], Any]) -> None:
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):  # no more items, or the parent is gone or has given up
            return
        try:
            reply = (True, function(item))
        except ShardError as error:
            reply = (False, error)
        except Exception:  # handed to the parent, which raises it
            reply = (False, RuntimeError(f"a worker process failed:\n{traceback.format_exc()}"))
        try:
            connection.send(reply)
        except OSError:  # the parent is gone
            return


def _send(worker: tuple[SpawnProcess, Connection], item: Any) -> None:
    with suppress(OSError):  # a worker that died is reported when its result is due, after the ones before it
        worker[1].send(item)


def _receive(worker: tuple[SpawnProcess, Connection]) -> Any:
    try:
        good, value = worker[1].recv()
    except (EOFError, OSError) as error:
        raise _died(worker[0]) from error
    if not good:
        raise value
    return value


def _died(process: SpawnProcess) -> ShardError:
    process.join(_PATIENCE)
    return ShardError(
        f"worker process {process.pid} died with exit code {process.exitcode} (-9 is often: out of memory); "
        "try again with fewer --workers"
    )
