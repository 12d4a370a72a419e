"""A test in a fork of the process that runs tests, for what a process that goes on had better not have done."""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from typing import Any


def in_a_fork(test: Callable[..., None]) -> Callable[..., None]:
    """The test, run in a child that ends with it; fails with the child's traceback."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(reader)
            try:
                test(*arguments, **named)
                said = ""
            except BaseException:
                said = traceback.format_exc()
            with open(writer, "w") as pipe:
                pipe.write(said)
            os._exit(0 if not said else 1)
        os.close(writer)
        with open(reader) as pipe:
            said = pipe.read()
        _, status = os.waitpid(pid, 0)
        assert status == 0, said or f"the child ended with wait status {status}"

    return run
