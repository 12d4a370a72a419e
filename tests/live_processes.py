"""Whether processes that nobody waits for are still there."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int) -> bool:
    """False also for one that has ended and was not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
