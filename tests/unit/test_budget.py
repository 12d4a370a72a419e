"""The budget of the tests: what it says of whom, and that a file over its line fails the session."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from budget import Budget, Spent, complaints, rewritten
from process_tree import Look, TreeAccount, WatchedTree

ROOT = Path(__file__).resolve().parents[2]
BUDGET = Budget(0.02, {"tests/test_a.py": 10, "tests/test_b.py": 4})


def test_every_test_file_has_a_line_and_every_line_a_file() -> None:
    lines = tomllib.loads((ROOT / "tests" / "budget.toml").read_text())["files"]
    assert sorted(lines) == sorted(file.relative_to(ROOT).as_posix() for file in (ROOT / "tests").rglob("test_*.py"))


# ---- the pure part ---------------------------------------------------------------------------------------------------


def test_one_and_a_half_times_the_line_is_allowed_and_no_more() -> None:
    assert complaints(BUDGET, {"tests/test_a.py": 15.0, "tests/test_b.py": 6.0}, 1.0, []) == []
    (said,) = complaints(BUDGET, {"tests/test_a.py": 15.1}, 1.0, [])
    for part in ("tests/test_a.py", "15.1", "15.0 are allowed", "now 10", "tests/budget.toml"):
        assert part in said


def test_a_slow_machine_is_allowed_more_and_a_quick_one_no_less() -> None:
    assert complaints(BUDGET, {"tests/test_a.py": 29.9}, 2.0, []) == []
    assert len(complaints(BUDGET, {"tests/test_a.py": 30.1}, 2.0, [])) == 1
    assert complaints(BUDGET, {"tests/test_a.py": 14.9}, 0.5, []) == []


def test_a_file_without_a_line_and_a_line_without_a_file_are_named_with_what_to_write() -> None:
    new, gone = complaints(BUDGET, {"tests/test_c.py": 5.2}, 2.0, ["tests/test_b.py"])
    assert 'add "tests/test_c.py" = 3' in new
    assert gone.startswith("tests/test_b.py has a line")


def test_files_that_ran_in_part_or_failed_are_not_judged_whichever_process_ran_them() -> None:
    spent = Spent({"tests/test_a.py": 99.0, "tests/test_b.py": 1.0}, partial={"tests/test_a.py"})
    spent.add(Spent({"tests/test_b.py": 1.5, "tests/test_c.py": 9.0}, failed={"tests/test_c.py"}))
    assert spent.whole() == {"tests/test_b.py": 2.5}


def test_written_are_the_lines_of_what_ran_as_on_the_machine_of_the_budget() -> None:
    text = "# words\n\ncalibration = 0.02\nslack = 0\n\n[files]\n"
    ran = {"tests/test_b.py": 30.0, "tests/test_a.py": 22.0, "tests/test_c.py": 0.1}
    budget = Budget(0.02, BUDGET.lines | {"tests/test_z.py": 1})
    assert rewritten(text, budget, ran, 2.0, ["tests/test_z.py"]) == (
        "# words\n\ncalibration = 0.02\nslack = 0\n\n[files]\n"
        '"tests/test_a.py" = 10\n'  # 11 was measured: near enough
        '"tests/test_b.py" = 15\n'
        '"tests/test_c.py" = 2\n'
    )


# ---- what is counted -------------------------------------------------------------------------------------------------


def test_who_was_waited_for_counts_once_and_an_orphan_with_what_was_last_seen_of_it() -> None:
    account = TreeAccount(10)
    account.look({10: Look(1, 0, 1.0, 0.0), 11: Look(10, 5, 2.0, 0.0), 12: Look(11, 6, 4.0, 0.0)})
    assert account.seconds == 7.0
    # 11 was waited for, with 0.5 s that nobody had seen; 12 was orphaned, and ends unseen by the tree.
    account.look({10: Look(1, 0, 1.0, 2.5), 12: Look(1, 6, 4.5, 0.0)})
    assert account.seconds == 8.0
    account.look({10: Look(1, 0, 1.0, 2.5)})
    assert account.seconds == 8.0


def test_a_killed_daemon_and_its_workers_that_end_between_two_looks_count_as_last_seen() -> None:
    account = TreeAccount(10)
    daemon, worker = Look(1, 5, 2.0, 1.0), Look(11, 6, 4.0, 0.0)
    account.look({10: Look(1, 0, 1.0, 0.0), 11: daemon, 12: worker})
    account.look({10: Look(1, 0, 1.0, 0.0), 11: Look(10, 99, 0.5, 0.0)})  # the id is in use again
    assert account.seconds == 1.0 + 3.0 + 4.0 + 0.5


def test_a_child_that_ends_between_two_reads_of_one_look_counts_once() -> None:
    account = TreeAccount(10)
    account.look({10: Look(1, 1, 1.0, 0.0), 11: Look(10, 2, 100.0, 0.0)})
    account.look({10: Look(1, 1, 1.0, 0.0)})  # read before the child ended, and the child after
    assert account.seconds == 101
    account.look({10: Look(1, 1, 1.0, 100.0)})
    assert account.seconds == 101
    account.look({10: Look(1, 1, 1.0, 100.0)})
    assert account.seconds == 101


def test_a_watcher_that_was_ended_makes_nothing_known_and_nothing_fail() -> None:
    tree = WatchedTree()
    assert tree._watcher is not None
    tree._watcher.kill()
    tree._watcher.wait()
    assert math.isnan(tree.seconds())
    tree.close()


def test_a_fork_that_outlives_the_session_holds_its_end_up_for_nobody() -> None:
    tree = WatchedTree()
    if (fork := os.fork()) == 0:  # with the watcher's input open, as loaders have it
        time.sleep(60)
        os._exit(0)
    began = time.monotonic()
    tree.close()
    assert time.monotonic() - began < 10
    os.kill(fork, signal.SIGKILL)
    os.waitpid(fork, 0)


def test_a_grandchild_whose_parent_is_gone_counts() -> None:
    spin = "import time\nwhile time.process_time() < 1.2: pass"
    # The parent ends while the grandchild still runs: init waits for that, and its time is in nobody's figures here.
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {spin!r}]); print(); sys.stdin.read()"
    tree = WatchedTree()
    try:
        before, own = tree.seconds(), sum(os.times()[:4])
        with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
            assert parent.stdin is not None
            assert parent.stdout is not None
            parent.stdout.readline()
            tree.seconds()  # has seen both
            parent.stdin.close()
            parent.stdout.read()  # ends with the last process that holds it
        tree.seconds()
        seen, told = tree.seconds() - before, sum(os.times()[:4]) - own
    finally:
        tree.close()
    assert told < 0.6
    assert 0.6 < seen < 2.4


# ---- the hook --------------------------------------------------------------------------------------------------------


def test_a_file_over_its_line_fails_the_session_unless_only_a_part_of_it_ran(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    spin = "    end = time.process_time() + 0.3\n    while time.process_time() < end:\n        pass\n"
    (tests / "test_long.py").write_text(f"import time\n\ndef test_one():\n{spin}\ndef test_two():\n{spin}")
    (tests / "test_short.py").write_text("def test_three():\n    pass\n")
    lines = '"tests/test_long.py" = 0.1\n"tests/test_short.py" = 1\n"tests/test_gone.py" = 1\n'
    (tests / "budget.toml").write_text(f"calibration = 1000\n\n[files]\n{lines}")

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "budget", f"--rootdir={tmp_path}", "tests", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout

    status, said = run("-p", "xdist.plugin", "-n", "2", "--dist", "loadfile")
    assert status == 1
    assert "3 passed" in said
    (complaint,) = [line for line in said.splitlines() if "are allowed" in line]
    assert complaint.startswith("tests/test_long.py took 0.")
    assert "0.2 are allowed" in complaint
    assert "tests/test_gone.py has a line" in said
    assert run("-k", "not two", "--deselect", "tests/test_short.py")[1].count("tests/test_long.py") == 0
