"""Results in order, errors as they were, and no worker that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from shards.errors import ShardError
from shards.ordered_map import ordered_map


def square(x: int) -> tuple[int, int]:
    time.sleep(0.001 * (x % 3))
    return x * x, os.getpid()


def fail_at_five(x: int) -> int:
    if x == 5:
        raise ShardError("five is broken")
    return x


# Functions of a test module cannot be found by a spawned process (pytest's importlib mode): run as a script instead.
SCRIPT = """
import os, sys, time
from shards.ordered_map import ordered_map
from shards.schema import ShardError
def square(x):
    time.sleep(0.001 * (x % 3))
    return x * x, os.getpid()
def fail_at_five(x):
    if x == 5: raise ShardError("five is broken")
    return x
def divide(x): return 1 / (x - 3)
def die_at_three(x):
    if x == 3: os.kill(os.getpid(), 9)
    return x
def sleepy(x):
    time.sleep(2)
if __name__ == "__main__":
"""


def run_script(tmp_path: Path, environ: dict[str, str], body: str) -> subprocess.Popen:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + "\n".join("    " + line for line in body.strip().splitlines()))
    return subprocess.Popen(
        [sys.executable, str(path)], env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_one_worker_is_this_process() -> None:
    assert list(ordered_map(square, range(5), 1)) == [(x * x, os.getpid()) for x in range(5)]
    assert list(ordered_map(square, [], 4)) == []
    with pytest.raises(ShardError, match="five is broken"):
        list(ordered_map(fail_at_five, range(10), 1))


def test_results_come_in_order_from_several_processes(tmp_path: Path, clean_environ: dict[str, str]) -> None:
    body = """
for workers in (2, 3):
    results = list(ordered_map(square, range(50), workers))
    assert [value for value, _ in results] == [x * x for x in range(50)]
    assert len({pid for _, pid in results}) == workers and os.getpid() not in {pid for _, pid in results}
    assert all(results[i][1] == results[i % workers][1] for i in range(50))
import psutil
left = [c.cmdline() for c in psutil.Process().children() if "resource_tracker" not in " ".join(c.cmdline())]
assert not left, left
print("done")
"""
    process = run_script(tmp_path, clean_environ, body)
    out, err = process.communicate(timeout=120)
    assert (out, process.returncode) == ("done\n", 0), err


def test_errors_of_workers_reach_the_caller(tmp_path: Path, clean_environ: dict[str, str]) -> None:
    body = """
for function in (fail_at_five, divide, die_at_three):
    good = []
    try:
        for value in ordered_map(function, range(10), 2):
            good.append(value)
    except (ShardError, RuntimeError) as error:
        print(len(good), type(error).__name__, str(error).splitlines()[0], str(error).splitlines()[-1], sep="|")
"""
    process = run_script(tmp_path, clean_environ, body)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = out.splitlines()
    assert lines[0] == "5|ShardError|five is broken|five is broken"
    assert lines[1] == "3|RuntimeError|a worker process failed:|ZeroDivisionError: division by zero"
    assert lines[2].startswith("3|ShardError|worker process")
    assert "died with exit code -9 (-9 is often: out of memory); try again with fewer --workers" in lines[2]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, clean_environ: dict[str, str], how: signal.Signals) -> None:
    process = run_script(tmp_path, clean_environ, "print('go', flush=True)\nlist(ordered_map(sleepy, range(9), 2))")
    parent = psutil.Process(process.pid)
    deadline = time.monotonic() + 60
    while len(parent.children()) < 3:  # two workers and multiprocessing's resource tracker
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = parent.children()
    process.send_signal(how)
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=30)  # after SIGKILL they notice when they hand over their result
    assert not alive


def test_closing_early_ends_the_workers(tmp_path: Path, clean_environ: dict[str, str]) -> None:
    body = """
from contextlib import closing
import psutil
with closing(ordered_map(square, range(1000), 2)) as results:
    next(results)
left = [c.cmdline() for c in psutil.Process().children() if "resource_tracker" not in " ".join(c.cmdline())]
assert not left, left
"""
    process = run_script(tmp_path, clean_environ, body)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
