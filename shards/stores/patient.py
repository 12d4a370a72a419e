"""The one place where storage is asked again: a store over a client that makes single requests."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from shards.stores.client import Client, Part
from shards.stores.patience import Patience
from shards.stores.second_look import believed
from shards.stores.store import FaultError, MissingObjectError, StoreError

Answer = TypeVar("Answer")


class PatientStore:
    """A store that goes on asking its client as long as its patience lasts. Threads may read at once.

    Attributes:
        url, patience, faults: as of every store.
        num_requests: made, those that failed included; a copy begins with none.
        num_bytes: received; likewise.
        client: makes the requests, and repeats none of them.
    """

    def __init__(self, client: Client, patience: Patience | None = None) -> None:
        """Nothing is contacted yet."""
        self.client = client
        self.url = client.url
        self.patience = patience or Patience()
        self.faults: Counter[str] = Counter()
        self.num_requests = 0
        self.num_bytes = 0
        self._answered = False  # ever, here or where this store was copied from
        self._lock, self._lock_pid = Lock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, faults=Counter(), num_requests=0, num_bytes=0, _lock=Lock(), _lock_pid=os.getpid())

    def read(self, name: str) -> bytes:
        return self._read(name, Part(0, None))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        return self._read(name, Part(offset, length)) if length > 0 else b""

    def write(self, name: str, data: bytes | Path) -> None:
        self._ask(partial(self.client.put, name, data))

    def write_if_absent(self, name: str, data: bytes) -> bool:
        lost_answers = 0

        def attempt() -> bool:
            nonlocal lost_answers
            try:
                return self.client.put_if_absent(name, data)
            except FaultError:
                lost_answers += 1  # it may have been done all the same
                raise

        if self._ask(attempt):
            return True
        return bool(lost_answers) and believed(self, partial(self.read, name), lambda found: found == data) == data

    def exists(self, name: str) -> bool:
        # What is there is rarely denied, and what is not there never shown: only a "no" is asked twice.
        return any(self._ask(partial(self.client.exists, name)) for _ in range(2))

    def list(self) -> tuple[str, ...]:
        """Names of all objects, sorted: as two listings say, since an answer has no checksum."""
        trial, seen = self.patience.begin(), Counter[tuple[str, ...]]()
        while True:
            names = self._list_once()
            seen[names] += 1
            if seen[names] == 2:
                return names
            if len(seen) > 1 and not trial.failed():
                raise StoreError(f"{self.url}: every listing says something else; is somebody writing there?")

    def delete(self, name: str) -> None:
        self._ask(partial(self.client.delete, name))

    def remove_leftovers(self) -> None:
        """Nothing to do: a put that ends early leaves nothing."""

    def reconnect(self) -> None:
        self.client.reconnect()

    def fill(self, name: str, part: Part) -> None:
        """Read the rest of a part, in the pieces in which it comes: one loop around requests and bodies.

        What is cut goes on where it was cut.

        Raises:
            MissingObjectError: there is no such object.
            StoreError: it is of another version than `part`.
        """

        def attempt() -> None:
            self.client.fetch(name, part)
            if not part.is_complete:
                raise FaultError(
                    f"{self.url}/{name}: received {part.num_received} bytes, {part.remaining} are missing; check the "
                    "network and try again",
                    "short answer",
                )

        had = part.num_received
        self._ask(attempt, part)
        with self._counting():
            self.num_bytes += part.num_received - had

    def _read(self, name: str, part: Part) -> bytes:
        self.fill(name, part)
        return part.pieces[0] if len(part.pieces) == 1 else b"".join(part.pieces)

    def _counting(self) -> Lock:
        if self._lock_pid != os.getpid():  # a thread of the parent may have held the other one at the fork
            self._lock, self._lock_pid = Lock(), os.getpid()
        return self._lock

    def _list_once(self) -> tuple[str, ...]:
        names, token = self._ask(partial(self.client.list_page, None))
        while token is not None:
            more, token = self._ask(partial(self.client.list_page, token))
            names += more
        return tuple(sorted(names))

    def _ask(self, attempt: Callable[[], Answer], part: Part | None = None) -> Answer | Any:
        """What `attempt` answers, or None once all of `part` is here."""
        trial = self.patience.begin(before_contact=not self._answered)
        failures = 0
        while True:
            had = part.num_received if part else 0
            if part:
                part.num_asked += 1
            with self._counting():
                self.num_requests += 1
            try:
                answer = attempt()
            except FaultError as fault:
                with self._counting():
                    self.faults[fault.cause] += 1
                failures += 1
                if part and part.size_bytes is not None:  # an answer named the object, whatever became of its bytes
                    self._answered = True
                    trial.contact()
                if part and part.num_received > had:
                    trial.progress()
                if part and part.is_complete:
                    return None
                if not trial.failed():
                    found, semicolon, next_move = str(fault).rpartition("; ")
                    asked = f"(asked {failures} times in {trial.seconds:.0f} s)"
                    raise StoreError(f"{found} {asked}; {next_move}" if semicolon else f"{fault} {asked}") from fault
            except MissingObjectError:
                self._answered = True
                raise
            else:
                self._answered = True
                return answer
