"""The `t4p` command of this checkout, one thread, for benchmarks that are calls of it."""

from __future__ import annotations

import os
import subprocess
import sys

from record import REPOSITORY


def t4p(*arguments: str) -> str:
    """What a call prints; one that fails ends the benchmark with the end of what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "commands.main", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"t4p {' '.join(arguments)}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout
