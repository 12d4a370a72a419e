"""The probe of storage: everything that packing and training ask of it, with the same client, in a place of its own."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from commands.doctor.finding import Finding
from shards.stores.folder import FolderStore
from shards.stores.place import open_store
from shards.stores.store import MissingObjectError, Store, StoreError

SMALL_BYTES = 2**18
LARGE_BYTES = 2**23
SMALL_REQUESTS = 5
# A large object that would take longer than this at the speed of the small one is not sent.
PATIENCE = 10.0


def try_storage(url: str) -> Finding:
    """Put, get, get a range, put conditionally, list, delete, and how fast.

    Writes below `url`, under a name that nobody else uses, and removes it again.

    Args:
        url: a folder, or s3://bucket/prefix.
    """
    scratch = open_store(f"{url.rstrip('/')}/t4p-doctor-{uuid4().hex[:12]}")
    trial = StorageTrial(scratch)
    with _folders_removed(scratch):
        try:
            _try_everything(trial)
        except MissingObjectError as error:
            # Nobody answers a put with that.
            fix = f"is {os.environ.get('AWS_ENDPOINT_URL', 'the endpoint')} an S3 endpoint? check AWS_ENDPOINT_URL"
            return Finding("broken", f"{trial.step}: {error}", fix, trial.figures)
        except StoreError as error:
            found, semicolon, fix = str(error).rpartition("; ")
            if "AccessDenied" in found and trial.step in ("look", "put"):
                fix += f" (to train on what is there, reading is enough: t4p shards verify {url})"
            problem = found if semicolon else str(error)
            return Finding("broken", f"{trial.step}: {problem}", fix if semicolon else "", trial.figures)
        except WrongAnswer as error:
            fix = "use storage that keeps to the S3 protocol, conditional writes (If-None-Match) included, or a folder"
            return Finding("broken", f"{trial.step}: {error}", fix, trial.figures)
        finally:
            trial.clean_up()
    speed = trial.figures
    return Finding(
        "works",
        f"{url}: put, get, range, conditional put, list, delete; up {speed['up_mb_per_second']:,.0f} MB/s, down "
        f"{speed['down_mb_per_second']:,.0f} MB/s in one stream, {speed['request_ms']:,.1f} ms for a small get",
        figures=speed,
    )


class WrongAnswer(Exception):
    """The storage answered, and not what was asked for."""


@dataclass
class StorageTrial:
    """How far a trial has come.

    Attributes:
        step: what is being tried, in a word for the user.
        written: names that may exist by now.
    """

    store: Store
    step: str = "look"
    written: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def put(self, name: str, data: bytes) -> None:
        self.written.append(name)
        self.store.write(name, data)

    def clean_up(self) -> None:
        """Remove what was written; where the first removal fails, the rest would too."""
        with suppress(StoreError):
            while self.written:
                self.store.delete(self.written[-1])
                self.written.pop()


def _try_everything(trial: StorageTrial) -> None:
    store = trial.store
    # Before anything is put: some servers make a bucket that is not there on the first put, and so a typing error one.
    _expect(not store.exists("small"), "it is there already")
    trial.step = "put"
    small = os.urandom(SMALL_BYTES)
    started = time.monotonic()
    trial.put("small", small)
    seconds = time.monotonic() - started

    trial.step = "get"
    _expect(store.read("small") == small, "what came back is not what was put")
    trial.step = "range"
    _expect(store.read_range("small", 1000, 5000) == small[1000:6000], "another range came back")
    _expect(store.read_range("small", SMALL_BYTES - 10, 100) == small[-10:], "another range came back at the end")
    times = []
    for index in range(SMALL_REQUESTS):
        began = time.monotonic()
        store.read_range("small", 1000 * index, 100)
        times.append(time.monotonic() - began)
    trial.figures["request_ms"] = 1000 * statistics.median(times)

    trial.step = "conditional put"
    trial.written.append("once")
    _expect(store.write_if_absent("once", b"first"), "refused, though there was nothing of that name")
    _expect(
        not store.write_if_absent("once", b"second") and store.read("once") == b"first",
        "it replaced what was there: of two packers of one dataset the second would win",
    )
    trial.step = "list"
    _expect(store.list() == ("once", "small"), f"found {', '.join(store.list()) or 'nothing'}; wanted once, small")

    trial.step = "speed"
    large = os.urandom(LARGE_BYTES if seconds * LARGE_BYTES / SMALL_BYTES < PATIENCE else SMALL_BYTES)
    began = time.monotonic()
    trial.put("large", large)
    put = time.monotonic()
    _expect(store.read("large") == large, "what came back is not what was put")
    trial.figures["up_mb_per_second"] = len(large) / 1e6 / (put - began)
    trial.figures["down_mb_per_second"] = len(large) / 1e6 / (time.monotonic() - put)

    trial.step = "delete"
    while trial.written:
        store.delete(trial.written[-1])
        _expect(not store.exists(trial.written.pop()), "it is still there")


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise WrongAnswer(problem)


@contextmanager
def _folders_removed(store: Store) -> Iterator[None]:
    """Folders that the trial had to make are gone afterwards."""
    made: list[Path] = []
    if isinstance(store, FolderStore):
        made = [folder for folder in (store.folder, *store.folder.parents) if not folder.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in made:  # the innermost first
                folder.rmdir()
