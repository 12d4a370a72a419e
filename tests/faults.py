"""A training that suffers every fault in turn: on a private Ray until Ctrl-C, then as jobs on a cluster to its end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
from launched_run import ROOT, Launched, cpu_of_children, cpu_seconds, is_being_written, not_ended, num_lines, suspend
from live_processes import is_running
from rank_processes import start_ranks
from ray_cluster import RayCluster
from ray_site import Site, ended
from small_model import SMALL

from launch.processes.caretaker import processes_of
from launch.training import newest_step

EVERY = 8  # steps between checkpoints; the run takes some 70 on its way through all faults
IMPORTS = "import torch, deepspeed, ray, open_clip"
STEP_TIMEOUT = 30  # seconds; a busy machine takes some for a step
SLOW_STARTS = 5  # Ray gives a node of its own 30 s: on a busy machine that is a loss, too


@dataclass(frozen=True)
class Members:
    """The processes of one attempt that a fault may hit.

    Attributes:
        folder: of the private Ray, or where the ranks of a job write.
        workers: by rank.
        raylets: of those, each a node.
        driver: None for a job, whose driver lives on the head.
    """

    folder: Path
    workers: Sequence[psutil.Process]
    raylets: Sequence[psutil.Process]
    driver: psutil.Process | None


@dataclass(frozen=True)
class Fault:
    """Something that is lost in the middle of training.

    Attributes:
        strike: given the command, and what it runs.
        told: of which one must stand in the line about the restart: several processes may be the first to see a loss.
    """

    name: str
    strike: Callable[[Launched, Members], None]
    told: tuple[str, ...]


def kill_raylet(launched: Launched, members: Members) -> None:
    suspend(members.workers)
    members.raylets[0].kill()


def kill_driver(launched: Launched, members: Members) -> None:
    assert members.driver is not None
    suspend(members.workers)
    members.driver.kill()


def stop_rank(launched: Launched, members: Members) -> None:
    """As the other rank sees it, it is neither dead nor does it anything."""
    suspend(members.workers[1:])


def kill_worker_that_writes(launched: Launched, members: Members) -> None:
    launched.wait_for(lambda: is_being_written(launched.run_dir), "a checkpoint that is being written")
    members.workers[1].kill()


def kill_node_for(cluster: RayCluster, launched: Launched, members: Members) -> None:
    """Kill one of the two nodes and start another in its place."""
    suspend(members.workers[1:])
    members.raylets[1].kill()
    cluster.add_nodes([1])


ON_A_PRIVATE_RAY = (
    Fault(
        "Ray",
        kill_raylet,
        ("a process of Ray's own is gone", "the process that runs Ray", "Ray's own process", "was killed"),
    ),
    Fault("the driver", kill_driver, ("the process that runs Ray was killed by signal 9",)),
    Fault("a rank that stands still", stop_rank, ("rank 1 gives no sign of life: stopped",)),
)
A_WORKER = Fault("a worker", kill_worker_that_writes, ("its process was killed", "lost the connection"))


def a_node_of(cluster: RayCluster) -> Fault:
    told = ("its node is gone", "its process was killed", "lost the connection")
    return Fault("a node", partial(kill_node_for, cluster), told)


@dataclass(frozen=True)
class Road:
    """What a run goes through.

    Attributes:
        rounds: how often it suffers every fault.
    """

    num_steps: int
    rounds: int

    def overrides(self, run_dir: Path) -> list[str]:
        return [
            *SMALL,
            "data.num_workers=1",
            f"train.num_steps={self.num_steps}",
            f"train.checkpoint_every={EVERY}",
            "train.warmup_steps=2",
            f"train.step_timeout={STEP_TIMEOUT}",
            f"cluster.max_restarts={3 * self.rounds + SLOW_STARTS}",
            f"run.dir={run_dir}",
        ]


@dataclass(frozen=True)
class Loss:
    """What a fault did: the attempt that was lost, and what was said of it."""

    fault: Fault
    attempt: Members
    told: str

    @property
    def resumed_from(self) -> int:
        """The step that the next attempt begins after."""
        step = re.search(r"goes on from step (\d+)$", self.told)
        assert step, self.told
        return int(step[1])


def suffer(launched: Launched, faults: Sequence[Fault], find: Callable[[Launched], Members]) -> list[Loss]:
    """Let the attempts of one command be lost, one after the other."""
    losses = []
    for fault in faults:
        members = find(launched)
        launched.wait_for_progress(EVERY)
        already = len(launched.restarts())
        fault.strike(launched, members)
        launched.wait_for(partial(has_restarted, launched, already), f"a restart after the loss of {fault.name}")
        losses.append(Loss(fault, members, launched.restarts()[already]))
    return losses


def lose_a_loader(launched: Launched, sign: signal.Signals) -> float:
    """Kill or stop a loader of the first rank; seconds until the job has gone on by itself."""
    members = of_private_ray(launched)
    launched.wait_for_progress(EVERY)
    loaders = [child for child in members.workers[0].children() if child.name() == "pt_data_worker"]
    begun, reached = time.monotonic(), num_lines(launched.run_dir)
    loaders[-1].send_signal(sign)
    launched.wait_for(lambda: num_lines(launched.run_dir) > reached + EVERY, f"steps after signal {sign} to a loader")
    return time.monotonic() - begun


def has_restarted(launched: Launched, already: int) -> bool:
    return len(launched.restarts()) > already


def of_private_ray(launched: Launched) -> Members:
    driver = launched.driver()
    folder = Path(driver.cmdline()[-1])
    workers = launched.workers(folder)
    (raylet,) = [process for process in processes_of(folder) if process.name() == "raylet"]
    return Members(folder, workers, [raylet], driver)


def of_job(launched: Launched) -> Members:
    logs = launched.run_dir / "logs"
    workers = launched.workers(logs)
    raylets = [psutil.Process(worker.ppid()) for worker in workers]
    assert [raylet.name() for raylet in raylets] == ["raylet", "raylet"]
    return Members(logs, workers, raylets, None)


@dataclass(frozen=True)
class OnPrivateRay:
    """The first half of a run.

    Attributes:
        of_loaders: for a loader that was killed and one that was stopped, the seconds until there were new steps.
        losses: on the way.
        last: the attempt that Ctrl-C ended.
        left: processes of the last private Ray right after the command had ended.
        num_steps: that were logged by then.
        saved: step of the newest checkpoint by then.
        log: of rank 0 by then, and what error.txt said.
    """

    run_dir: Path
    command: Launched
    of_loaders: list[float]
    losses: list[Loss]
    last: Members
    left: list[psutil.Process]
    num_steps: int
    saved: int
    log: str
    story: str


def run_on_private_ray(shards: str, run_dir: Path, road: Road) -> OnPrivateRay:
    # The run begins with `never`: what was lost resumes from the checkpoints of this very launch all the same.
    arguments = [*road.overrides(run_dir), f"data.shards=[{shards}]", "train.resume=never", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = ["pretrain", "configs/smoke.yaml", *arguments]
    launched = Launched(run_dir, command, environment, run_dir.with_suffix(".private"))
    try:
        of_loaders = [lose_a_loader(launched, sign) for sign in (signal.SIGKILL, signal.SIGSTOP)]
        losses = suffer(launched, ON_A_PRIVATE_RAY * road.rounds, of_private_ray)
        last = of_private_ray(launched)
        launched.wait_for_progress(EVERY)
        launched.process.send_signal(signal.SIGINT)
        launched.wait()
    finally:
        launched.end()
    return OnPrivateRay(
        run_dir,
        launched,
        of_loaders,
        losses,
        last,
        processes_of(last.folder),
        num_lines(run_dir),
        newest_step(run_dir / "checkpoints"),
        (run_dir / "logs" / "rank-0.log").read_text(),
        (run_dir / "error.txt").read_text(),
    )


def run_uninterrupted(shards: str, run_dir: Path, road: Road) -> Path:
    arguments = ["pretrain", "configs/smoke.yaml", *road.overrides(run_dir), f"data.shards=[{shards}]"]
    with start_ranks([sys.executable, "-m", "commands.main", *arguments], 2, run_dir.with_suffix(".ranks")) as ranks:
        ranks.wait(timeout=1800)
    return run_dir


@dataclass(frozen=True)
class AsJobs:
    """The second half of a run: a job that loses a worker and is stopped, and one that loses a node and succeeds.

    Attributes:
        startup: CPU seconds from submission to the first step, of all that belongs to the cluster.
        imports: CPU seconds of one interpreter that imports what a worker imports.
        losses: of the first job.
        stopped_attempt: of it, the one that `launch stop` ended.
        losses_of_last: of the second job.
        listed: the first job as `launch list` had it, while its workers were suspended.
        second: (status, output, errors) of a second job for the same run folder.
        still: whether the workers were there after Ctrl-C ended the following.
        stopped: what `launch stop` answered, then `launch status` and another stop.
        saved: step of the newest checkpoint after it, and how many were logged.
        left: workers that were there after it.
    """

    job_id: str
    startup: float
    imports: float
    losses: list[Loss]
    stopped_attempt: Members
    losses_of_last: list[Loss]
    follower: Launched
    listed: list[dict]
    second: tuple[int, str, str]
    still: bool
    stopped: list[str]
    saved: tuple[int, int]
    left: list[psutil.Process]
    last: Launched


def run_as_jobs(site: Site, run_dir: Path, road: Road) -> AsJobs:
    assert site.cluster is not None
    call = site.pretrain(run_dir, *road.overrides(run_dir))
    before, known = cpu_seconds(site.cluster.folder), num_lines(run_dir)
    job_id = site.ask(*call)["job_id"]
    following = ["logs", job_id, "--follow", "--address", site.url]
    follower = Launched(run_dir, following, site.environ(), run_dir.with_suffix(".follower"))
    try:
        follower.wait_for(lambda: num_lines(run_dir) > known, "the first step")
        startup = cpu_seconds(site.cluster.folder) - before
        losses = suffer(follower, [A_WORKER] * road.rounds, of_job)

        members = of_job(follower)
        follower.wait_for_progress(EVERY)
        suspend(members.workers)  # what follows takes seconds, in which they would train to the end
        listed = [job for job in site.ask("list")["jobs"] if job["job_id"] == job_id]
        second = ended(site.start(*call))
        follower.process.send_signal(signal.SIGINT)
        follower.wait()
        still = all(is_running(worker.pid) for worker in members.workers)
        for worker in members.workers:
            worker.resume()
        stopped = [site.ask(verb, job_id)["status"] for verb in ("stop", "status", "stop")]
        saved = (newest_step(run_dir / "checkpoints"), num_lines(run_dir))
        left = not_ended(members.workers)
    finally:
        follower.end()

    last = Launched(run_dir, [*call, "--follow"], site.environ(), run_dir.with_suffix(".last"))
    try:
        losses_of_last = suffer(last, [a_node_of(site.cluster)] * road.rounds, of_job)
        for loss in losses_of_last:
            with suppress(psutil.NoSuchProcess):  # left without a node, and suspended, it may not end by itself
                loss.attempt.workers[1].kill()
        last.wait()
    finally:
        last.end()
    return AsJobs(
        job_id,
        startup,
        import_seconds(),
        losses,
        members,
        losses_of_last,
        follower,
        listed,
        second,
        still,
        stopped,
        saved,
        left,
        last,
    )


def import_seconds() -> float:
    """CPU seconds of an interpreter that imports what a worker imports."""
    before = cpu_of_children()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    return cpu_of_children() - before


def assert_every_loss_was_told(losses: Sequence[Loss]) -> None:
    """In words that fit, and each attempt got on."""
    for loss in losses:
        assert any(words in loss.told for words in loss.fault.told), (loss.fault.name, loss.told)
    steps = [loss.resumed_from for loss in losses]
    assert steps == sorted(set(steps))
    assert steps[0] >= EVERY
