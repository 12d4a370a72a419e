"""How long storage is asked again before it counts as failed, and how often before data counts as damaged."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

_dice = random.SystemRandom()  # of its own: a training's generators are part of its state


@dataclass(frozen=True)
class Patience:
    """The policy of a store.

    Attributes:
        seconds: from a first fault on, without any progress in between, until it is given up.
        seconds_before_contact: the same where the place has never answered: its address may be wrong.
        looks: equal answers after which an object is taken for damaged: storage that alters bytes alters them
            differently each time.
        looks_for_missing: answers that it is not there after which it is taken for missing: these are all alike.
        first_pause: seconds before the second attempt; each later pause is twice as long, up to `longest_pause`, and
            all are shortened at random by up to a half, so that a thousand readers do not come back together.
    """

    seconds: float = 60.0
    seconds_before_contact: float = 5.0
    looks: int = 3
    looks_for_missing: int = 5
    first_pause: float = 0.05
    longest_pause: float = 5.0

    def begin(self, *, before_contact: bool = False) -> Trial:
        """The attempts at one thing."""
        return Trial(self, self.seconds_before_contact if before_contact else self.seconds)


@dataclass
class Trial:
    """Attempts at one thing, and the time since they began to fail.

    Attributes:
        limit: seconds of failing that are borne.
        failures: so far, since there last was progress.
    """

    patience: Patience
    limit: float
    failures: int = 0
    _since: float = field(default=0.0, repr=False)

    @property
    def seconds(self) -> float:
        """Since the first failure; 0 without one."""
        return time.monotonic() - self._since if self.failures else 0.0

    def progress(self) -> None:
        """Something came: patience begins anew."""
        self.failures = 0

    def contact(self) -> None:
        """The place has answered: from here on it is borne like any that has."""
        self.limit = self.patience.seconds

    def failed(self) -> bool:
        """Count a failure and wait before the next attempt; False, at once, when patience is at its end.

        There is always a second attempt, however long the first one took to fail.
        """
        if not self.failures:
            self._since = time.monotonic()
        elif self.seconds >= self.limit:
            return False
        pause = min(self.patience.first_pause * 2.0 ** min(self.failures, 30), self.patience.longest_pause)
        self.failures += 1
        # Not beyond the end: the last attempt is made then.
        time.sleep(min(pause * _dice.uniform(0.5, 1.0), max(self.limit - self.seconds, 0.0)))
        return True
