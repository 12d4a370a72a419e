"""CPU seconds (user and system) of a process and everything below it, also of what has left the tree or has ended.

Run as a script beside the process that it watches (`python process_tree.py PID`; `WatchedTree` starts it and asks): a
thread in that process would be in the way of tests that fork. Linux tells a process's own time and that of the children
it has waited for. Orphans (Ray's daemons, say, or what a killed command leaves) are waited for by init, so this looks
every INTERVAL who is below, remembers them by process id and time of start, and keeps the last figure of one that ended
with nobody of the tree to wait for it. Missed: what such an orphan used after the last look, and a process that was
orphaned before the first.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

INTERVAL = 0.5  # seconds; a look takes 1 ms or 2


@dataclass(frozen=True)
class Look:
    """What is known of one process at one moment.

    Attributes:
        parent: process id.
        born: time of its start; tells it from a later process of the same id.
        own: CPU seconds of the process itself.
        waited: of the children that it has waited for, and of theirs.
    """

    parent: int
    born: int
    own: float
    waited: float

    @property
    def total(self) -> float:
        return self.own + self.waited


class TreeAccount:
    """The books: pure, fed with what was seen of all processes of the tree, look by look."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._last: dict[int, Look] = {}
        self._lost = 0.0
        # What ended before the last look and whom it was below, with that one's `waited` before.
        self._pending: dict[int, tuple[float, float]] = {}

    @property
    def known(self) -> dict[int, Look]:
        """By process id, what was below the root, or once was, at the last look."""
        return self._last

    @property
    def seconds(self) -> float:
        """CPU seconds of the root and of everything that ever was below it."""
        pending = sum(self._untold(ancestor) for ancestor in self._pending)
        return self._lost + pending + sum(look.total for look in self._last.values())

    def look(self, seen: dict[int, Look]) -> None:
        """Take in who is there now: the root and all that are below it or were."""
        gone = {pid: look for pid, look in self._last.items() if pid not in seen or seen[pid].born != look.born}
        # Whoever is left waited for those below it, and its figure has grown by theirs; what is missing, nobody told.
        below: dict[int, float] = {}
        for look in gone.values():
            ancestor = look.parent
            while ancestor in gone:
                ancestor = gone[ancestor].parent
            below[ancestor] = below.get(ancestor, 0.0) + look.total
        before, self._last = self._last, seen
        # One look later: a child may have ended between the look at its parent, who had not heard of it, and its own.
        self._lost += sum(self._untold(ancestor) for ancestor in self._pending)
        self._pending = {
            ancestor: (seconds, before[ancestor].waited if ancestor in before and ancestor not in gone else math.inf)
            for ancestor, seconds in below.items()
        }

    def _untold(self, ancestor: int) -> float:
        seconds, waited_before = self._pending[ancestor]
        told = self._last[ancestor].waited - waited_before if ancestor in self._last else 0.0
        return max(0.0, seconds - max(0.0, told))


# ---- the script ------------------------------------------------------------------------------------------------------


def read_look(pid: int, ticks: int = os.sysconf("SC_CLK_TCK")) -> Look | None:
    """None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            values = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    user, system, waited_user, waited_system = (int(value) / ticks for value in values[11:15])
    return Look(int(values[1]), int(values[19]), user + system, waited_user + waited_system)


def watch(root: int) -> None:
    """Answer each line on stdin with the CPU seconds of the tree, until stdin or the root ends."""
    account = TreeAccount(root)
    strangers: set[int] = {os.getpid()}
    while True:
        asked = bool(select.select([0], [], [], INTERVAL)[0])
        if asked and not os.read(0, 100):
            return
        seen = _look_at_tree(root, account, strangers)
        if root not in seen:
            return
        account.look(seen)
        if asked:
            print(f"{account.seconds:.2f}", flush=True)


def _look_at_tree(root: int, account: TreeAccount, strangers: set[int]) -> dict[int, Look]:
    everyone = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    strangers &= everyone
    # Ancestors first: a child that ends meanwhile is then counted in neither, for this one look, instead of in both;
    # TreeAccount waits for the next look before it takes such a one for lost.
    looks = {pid: look for pid in sorted(everyone - strangers) if (look := read_look(pid)) is not None}
    seen: dict[int, Look] = {}
    for pid in looks:
        path = [pid]
        while path[-1] not in seen and path[-1] != root and path[-1] in looks:
            known = account.known.get(path[-1])
            if known is not None and known.born == looks[path[-1]].born:
                break
            path.append(looks[path[-1]].parent)
        if path[-1] in looks:
            seen.update((ours, looks[ours]) for ours in path)
        else:
            strangers.add(pid)
    return seen


# ---- the side of the tests -------------------------------------------------------------------------------------------


class WatchedTree:
    """This process and all below it but the watcher; where /proc is missing, what this process can tell alone."""

    def __init__(self) -> None:
        self._watcher = None
        if Path("/proc/self/stat").exists():
            self._watcher = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the tests
            )

    def seconds(self) -> float:
        """CPU seconds until now."""
        if self._watcher is None:
            return sum(os.times()[:4])
        assert self._watcher.stdin is not None
        assert self._watcher.stdout is not None
        try:
            self._watcher.stdin.write("\n")
            self._watcher.stdin.flush()
            return float(self._watcher.stdout.readline())
        except (OSError, ValueError):  # somebody ended it: nothing is known any more
            return math.nan

    def close(self) -> None:
        """End the watcher. Its input may be open in a fork of this process that nobody ended: it is not waited for."""
        if self._watcher is not None:
            self._watcher.kill()
            with contextlib.suppress(OSError):
                self._watcher.communicate()


if __name__ == "__main__":
    watch(int(sys.argv[1]))
