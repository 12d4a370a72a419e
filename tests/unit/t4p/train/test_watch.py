"""The end that the watch puts to a rank: whatever its last words meet."""

from __future__ import annotations

import threading
import time

import pytest

from t4p import heartbeat, stop
from t4p.errors import HungError
from t4p.train.watch import Watch


def hang(error: BaseException) -> None:
    time.sleep(100)


def fail(error: BaseException) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(("tell", "waited_for"), [(hang, 0.2), (fail, 20.0)])
def test_a_disk_that_hangs_or_is_full_does_not_keep_a_hung_rank_alive(
    tell, waited_for: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "_told", [tell])
    monkeypatch.setattr(stop, "LAST_WORDS", waited_for)
    monkeypatch.setattr("t4p.train.watch.FIRST_STEP_FACTOR", 1)
    ended, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    watch = Watch(0.2, end)
    watch.start()
    assert ended.wait(20)
    assert statuses == [HungError.exit_status]
