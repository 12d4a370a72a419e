"""Broken only after a second look: what looks damaged or missing is read again before anybody believes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import google_crc32c

from shards.stores.store import MissingObjectError, Store, StoreError

_AGREED = 2  # equal answers that are believed where nothing vouches for the bytes


def believed(store: Store, read: Callable[[], bytes], is_whole: Callable[[bytes], bool] | None) -> bytes:
    """The bytes that are whole or, read over new connections, the same wrong ones again and again: those are damaged.

    Storage that alters, cuts or denies an answer does it in another way each time; an object that is damaged or gone
    stays so. What was put right counts in `store.faults`.

    Args:
        store: what is read.
        read: reads it once.
        is_whole: whether the bytes are those that were written; None where there is nothing to hold them against, and
            two equal answers have to do.

    Raises:
        MissingObjectError: it is not there, at several looks.
        StoreError: storage refused or failed, or gave another answer each time.
    """
    trial = store.patience.begin()
    answers: Counter[tuple[int, int] | None] = Counter()
    needed = _AGREED if is_whole is None else store.patience.looks
    while True:
        missing: MissingObjectError | None = None
        data = b""
        try:
            data = read()
        except MissingObjectError as error:
            missing, answer = error, None
        else:
            answer = len(data), google_crc32c.value(data)
        good = missing is None and is_whole is not None and is_whole(data)
        answers[answer] += 1
        if good or answers[answer] >= (store.patience.looks_for_missing if missing else needed):
            _count(store, answers, answer)
            if missing:
                raise missing
            return data
        if is_whole is None and answers == {answer: 1} and not missing:
            continue  # nothing is wrong yet
        del data  # a whole shard may be large: one at a time
        store.reconnect()
        if not trial.failed():
            raise StoreError(
                f"{store.url}: gave {len(answers)} different answers to one question in {trial.seconds:.0f} s, none of "
                "them what was packed; the storage or the way to it alters data, so try again from another machine"
            )


def _count(store: Store, answers: Counter[tuple[int, int] | None], final: tuple[int, int] | None) -> None:
    """Note the answers that were not the final one."""
    for answer, count in answers.items():
        if answer != final:
            store.faults["404 of what is there" if answer is None else "altered bytes"] += count
