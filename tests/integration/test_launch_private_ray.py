"""A real Ray of our own: work done, failures told, and nothing left behind however it ends.

What a training meets on one is in test_launch.py.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from launch.attempts import run_job
from launch.errors import LaunchError
from launch.processes.caretaker import processes_of
from launch.training import raise_failure
from launch.worker import WorkerJob

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.kill, pytest.mark.alone]

# Ray alone takes 7 to 10 s to start on two idle cores, and several times that on busy ones.
PATIENCE = 600

WORKERS = '''
import json, os, signal, time
from datetime import timedelta
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from launch.processes.caretaker import processes_of
from t4p.train.loopback import join_on_loopback


def join():
    join_on_loopback("gloo", timedelta(minutes=5))


def note(out, **facts):
    """What this rank sees, its private Ray's folder and processes included; whole or absent."""
    folder = Path(os.readlink("/proc/self/fd/1")).parent
    everyone = [(p.pid, p.create_time(), p.name()) for p in (*processes_of(folder), psutil.Process())]
    facts |= {"folder": str(folder), "processes": everyone, "rank": dist.get_rank()}
    partial = Path(out) / f"partial-{dist.get_rank()}"
    partial.write_text(json.dumps(facts))
    partial.rename(Path(out) / f"rank-{dist.get_rank()}.json")


def see(config, report):
    join()
    number = torch.tensor([2.0 ** dist.get_rank()])
    dist.all_reduce(number)
    for step in range(1, 251):
        report(step, 250, {"step": step})
    print("hello from", dist.get_rank())
    note(config["out"], sum=number.item(), world=dist.get_world_size(), cwd=os.getcwd(),
         threads=os.environ["OMP_NUM_THREADS"], secret=os.environ["AWS_SECRET_ACCESS_KEY"],
         niceness=psutil.Process().nice())


def rank_1_raises(config, report):
    see(config, report)
    dist.barrier()
    if dist.get_rank() == 1:
        raise ValueError("the depth of scene0011_00/000240 is upside down")
    dist.barrier()


def wait_forever(config, report):
    join()
    note(config["out"])
    time.sleep(10_000)
'''

COMMAND = """
import json, sys
from launch.attempts import run_job
from launch.processes.stop_signals import Stopped
from launch.worker import WorkerJob
try:
    run_job(WorkerJob("launched_workers:wait_forever", {"out": sys.argv[1]}, 2), lambda: None, max_restarts=5)
except Stopped as stop:
    sys.exit(128 + stop.signal_number)
"""


@pytest.fixture
def launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for notes; the module of worker functions is importable in what is launched meanwhile."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "launched_workers.py").write_text(WORKERS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "modules"), str(Path(__file__).parents[2])]))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "handed-on")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    out = tmp_path / "notes"
    out.mkdir()
    return out


def notes(out: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(out.glob("rank-*.json"))]


def alive(noted: list[dict]) -> list[tuple]:
    """Processes that the ranks saw and that still run. Compared by birth too: pids come again."""
    left = []
    for pid, born, name in {tuple(process) for note in noted for process in note["processes"]}:
        try:
            process = psutil.Process(pid)
            if process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE:
                left.append((pid, name))
        except psutil.NoSuchProcess:
            continue
    return left


def assert_nothing_left(out: Path) -> None:
    noted = notes(out)
    names = {name for note in noted for _, _, name in note["processes"]}
    assert {"raylet", "gcs_server"} <= names, "the notes name Ray's processes, else this proves nothing"
    assert alive(noted) == []
    assert not any(Path(note["folder"]).exists() for note in noted)


def drivers_of(pid: int) -> list[psutil.Process]:
    """The processes that own a private Ray, started by this process."""
    drivers = []
    for child in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # it ends meanwhile
            if child.status() != psutil.STATUS_ZOMBIE and "launch.driver" in child.cmdline():
                drivers.append(child)
    return drivers


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s for {what}"
        time.sleep(0.1)


def assert_a_group_in_the_callers_environment(out: Path, num_workers: int) -> None:
    seen = notes(out)
    assert [note["rank"] for note in seen] == list(range(num_workers))
    cores = len(os.sched_getaffinity(0))
    for note in seen:
        assert note["sum"] == 2**num_workers - 1
        assert note["world"] == num_workers
        assert note["cwd"] == os.getcwd()
        assert note["threads"] == str(max(1, cores // num_workers))
        assert note["secret"] == "handed-on"
        assert note["niceness"] == psutil.Process().nice(), "not Ray's 15, with which it would starve beside other work"
    logs = sorted((out / "logs").iterdir())
    assert [log.name for log in logs] == [f"rank-{rank}.log" for rank in range(num_workers)]
    assert logs[-1].read_text().count(f"hello from {num_workers - 1}\n") == 1, "one attempt, and no line twice"
    assert_nothing_left(out)


def assert_nobody_else_gets_in(folder: Path, out: Path) -> None:
    """Every path of a running launch: what lies in its folder, what its processes write to, where they listen."""
    assert (stat.S_IMODE(folder.stat().st_mode), folder.stat().st_uid) == (0o700, os.geteuid())
    assert not folder.is_symlink()
    ours = {path.name: path.lstat() for path in folder.iterdir()}
    assert {"attempt.json", "driver.log", "rank-0.log", "rank-1.log", "ray", "token"} <= ours.keys()
    assert {entry.st_uid for entry in ours.values()} == {os.geteuid()}
    assert not any(stat.S_ISLNK(entry.st_mode) for entry in ours.values())
    assert stat.S_IMODE(ours["token"].st_mode) == 0o600
    opened = [name for name, entry in ours.items() if stat.S_IMODE(entry.st_mode) & 0o022]
    assert opened == ["ray"], "what others could write to, if they came as far, is Ray's own folder alone"
    processes = processes_of(folder)
    assert len(processes) > 5
    sockets = {found.laddr for process in processes for found in process.net_connections("unix") if found.laddr}
    assert any(path.endswith("plasma_store") for path in sockets)
    assert max(map(len, sockets)) <= 107
    files = {file.path for process in processes for file in process.open_files() if file.mode not in ("r", "rb")}
    assert len(files) > 10
    outside = [path for path in files | sockets if not path.startswith((f"{folder}/", f"{out}/", "/dev/shm/", "@"))]
    assert outside == []
    if os.geteuid() == 0:
        tried = subprocess.run([sys.executable, "-c", INTRUDER, str(folder)], capture_output=True, text=True)
        assert tried.stdout.split() == ["PermissionError"] * 4, tried.stderr


# As another user: list, read, swap a log for a link (which a launch once copied into the run folder), connect.
INTRUDER = """
import os, socket, sys
from pathlib import Path
folder = Path(sys.argv[1])
sockets = list(folder.glob("ray/session_2*/sockets/raylet*"))
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def swap():
    (folder / "rank-1.log").rename(folder / "moved")
    (folder / "rank-1.log").symlink_to("/etc/shadow")
def connect():
    socket.socket(socket.AF_UNIX).connect(str(sockets[0]))
for attack in (lambda: os.listdir(folder), lambda: (folder / "token").read_text(), swap, connect):
    try:
        attack()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""


def assert_it_listens_here_alone(folder: Path) -> None:
    listening = {
        (connection.laddr.ip.removeprefix("::ffff:"), process.name())
        for process in processes_of(folder)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(listening) > 5
    assert {address for address, _ in listening} == {"127.0.0.1"}, listening


def start_waiting(out: Path) -> subprocess.Popen:
    """A process that runs ranks which wait for ever."""
    return subprocess.Popen([sys.executable, "-c", COMMAND, str(out)])


def test_two_private_rays_live_side_by_side_and_neither_leaves_anything_behind(launched: Path, tmp_path: Path) -> None:
    """One whose command is killed; beside it another with a rank that raises, and that is not tried again."""
    other = tmp_path / "other"
    other.mkdir()
    command = start_waiting(other)
    try:
        wait_until(lambda: len(notes(other)) == 2 or command.poll() is not None, "the first Ray's ranks")
        job = WorkerJob("launched_workers:rank_1_raises", {"out": str(launched)}, 2)
        outcome = run_job(job, lambda: None, keep_logs=launched / "logs", max_restarts=5)
        left = dict(alive(notes(other)))
        ranks = {note["processes"][-1][0] for note in notes(other)}
        folder = Path(notes(other)[0]["folder"])
        assert_nobody_else_gets_in(folder, other)
        assert_it_listens_here_alone(folder)
        assert len(ranks) == 2
        assert ranks <= left.keys()
        assert {"raylet", "gcs_server"} <= set(left.values()), "the end of the one did not touch the other"
    finally:
        command.kill()
        assert command.wait(timeout=60) == -signal.SIGKILL
    with pytest.raises(LaunchError) as caught:
        raise_failure(outcome, 2, launched / "run")
    message, where = str(caught.value).splitlines()
    assert message == "rank 1 of 2 failed: ValueError: the depth of scene0011_00/000240 is upside down"
    story = launched / "run" / "error.txt"
    assert str(story) in where
    assert 'launched_workers.py", line' in story.read_text()
    assert_a_group_in_the_callers_environment(launched, 2)
    # The caretaker of the killed command cleans up, on its own time.
    wait_until(lambda: not alive(notes(other)) and not folder.exists(), "the caretaker to end everything")
    assert_nothing_left(other)


def test_a_command_terminated_while_ray_starts_leaves_nothing_behind(launched: Path) -> None:
    command = start_waiting(launched)
    try:
        wait_until(lambda: bool(drivers_of(command.pid)) or command.poll() is not None, "the process that owns Ray")
        (driver,) = drivers_of(command.pid)
        folder = Path(driver.cmdline()[-1])  # of the private Ray

        def gcs_runs() -> bool:
            return any(process.name() == "gcs_server" for process in processes_of(folder))

        wait_until(gcs_runs, "Ray's first process")
        command.send_signal(signal.SIGTERM)
        assert command.wait(timeout=PATIENCE) == 143
        assert processes_of(folder) == []
        assert not folder.exists()
    finally:
        command.kill()
        command.wait()
