"""What `t4p launch` does with jobs on a cluster: submit, follow, list, stop."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from os.path import normpath
from pathlib import Path

from packaging.requirements import Requirement

from launch.errors import LaunchError, writing_in
from launch.jobs.client import Cluster, JobState, choose_address, find_token
from launch.jobs.source import project_version, read_requirements, read_source
from launch.jobs.spec import (
    RUN_DIR_KEY,
    STOP_KEY,
    STOP_PATIENCE,
    VERSION_KEY,
    JobSpec,
    build_job_spec,
    choose_forwarded,
    wanted_extras,
)
from launch.jobs.versions import version_problem
from launch.placement import describe_shortage
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError
from t4p.runs.progress import Progress, last_in

# Seconds between two looks at a log, growing while nothing is new.
POLL_SHORTEST, POLL_LONGEST = 0.5, 4.0
# Seconds that a cluster may be silent (a restarting dashboard, a lost tunnel) before following it ends.
SILENCE = 60.0
# Seconds after the certain end of a job, which has to reach every node.
AFTER_THE_END = 40.0


def connect(address: str | None, environment: Mapping[str, str]) -> Cluster:
    """Reach a cluster with the token of the environment.

    Raises:
        ConfigError: no address, no token, nobody there, or the token is refused.
    """
    return Cluster(choose_address(address, environment), find_token(environment, Path.home()))


def plan_job(
    config: JobConfig, num_workers: int, forward_env: Sequence[str], environment: Mapping[str, str]
) -> JobSpec:
    """The job that would be submitted now. Touches no network.

    Raises:
        ConfigError: as `build_job_spec` and `choose_forwarded`.
    """
    return build_job_spec(
        config,
        num_workers,
        source=read_source(),
        requirements=read_requirements(wanted_extras(config)),
        version=project_version(),
        forwarded=choose_forwarded(forward_env, environment),
        now=datetime.now(),
        suffix=secrets.token_hex(2),
    )


def submit(cluster: Cluster, spec: JobSpec) -> None:
    """Send a job, if the cluster can run it.

    Raises:
        ConfigError: it cannot, so nothing was sent.
        LaunchError: the cluster refuses it, or the disk here is full.
    """
    check_cluster(cluster, spec)
    # Ray's client packs the folder into a file beside it.
    with writing_in("the folder for temporary files"), tempfile.TemporaryDirectory(prefix="t4p-job-") as folder:
        for path, content in spec.files.items():
            file = Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        cluster.submit(spec, Path(folder))


def check_cluster(cluster: Cluster, spec: JobSpec) -> None:
    """Compare a job with what the cluster says of itself.

    Raises:
        ConfigError: Ray's version does not fit, the nodes cannot hold the workers, or a job that is not over has the
            same run folder.
    """
    for requirement in spec.requirements:
        if Requirement(requirement).name == "ray":
            problem = version_problem(requirement, cluster.ray_version())
            if problem is not None:
                raise ConfigError(
                    f"{cluster.address} runs another Ray than this source needs: {problem}; "
                    "install that version in the cluster, or use one that has it"
                )
    shortage = describe_shortage(cluster.nodes(), spec.sizes.resources, spec.sizes.num_workers)
    if shortage is not None:
        raise ConfigError(f"{cluster.address}: {shortage}")
    run_dir = spec.metadata[RUN_DIR_KEY]
    for job in our_jobs(cluster):
        if not job.is_over and normpath(job.metadata.get(RUN_DIR_KEY, "")) == normpath(run_dir):
            raise ConfigError(
                f"run.dir {run_dir}: job {job.job_id} is {job.status} in it; wait for its end, "
                f"`t4p launch stop {job.job_id}`, or choose another run.dir"
            )


def our_jobs(cluster: Cluster) -> list[JobState]:
    """The jobs that `t4p launch` submitted, the oldest first."""
    return [job for job in cluster.jobs() if VERSION_KEY in job.metadata]


def follow(cluster: Cluster, job_id: str, write: Callable[[str], None]) -> JobState:
    """Pass on what a job prints until it is over.

    The log is asked for again and again: Ray's websocket for it has no time limit, so a head that vanished would keep
    this waiting for ever, and the log is short (workers write to the run folder).

    Args:
        write: gets the text as it comes, newlines included.

    Raises:
        ConfigError: there is no such job.
        LaunchError: the cluster has been silent for a minute.
    """
    num_seen, pause, heard = 0, POLL_SHORTEST, time.monotonic()
    while True:
        try:
            job = cluster.job(job_id)  # before the log, which is then whole once the job is over
            log = cluster.log(job_id)
        except LaunchError as error:
            if time.monotonic() - heard > SILENCE:
                raise LaunchError(
                    f"{error}, and has not for {SILENCE:g} s; job {job_id} may still run: "
                    f"`t4p launch logs {job_id} --follow` when it is back"
                ) from error
            time.sleep(POLL_LONGEST)
            continue
        heard = time.monotonic()
        if len(log) > num_seen:
            write(log[num_seen:])
            num_seen, pause = len(log), POLL_SHORTEST
        if job.is_over:
            return job
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_LONGEST)


def progress_of(cluster: Cluster, job: JobState) -> Progress | None:
    """How far the training of a job is, by the last such line of its log: nobody here sees its run folder.

    Returns:
        None where there is no line yet, or the log is gone with its node.
    """
    try:
        return last_in(cluster.log(job.job_id)) if job.started else None
    except LaunchError:
        return None


def exit_status(job: JobState) -> int:
    """The status of the command that ran in the job: 0, 1 (it failed) or 2 (the call was wrong). Else 1."""
    if job.status == "SUCCEEDED":
        return 0
    return 2 if job.exit_code == 2 else 1


def stop(cluster: Cluster, job_id: str, timeout: float | None = None) -> JobState:
    """End a job and wait until it has ended; one that is over is left as it is.

    Args:
        timeout: seconds; by default as long as the job may take for a last checkpoint, and to end on every node.

    Raises:
        ConfigError: there is no such job.
        LaunchError: it still runs after `timeout` seconds.
    """
    job = cluster.job(job_id)
    if job.is_over:
        return job
    if timeout is None:
        wait = job.metadata.get(STOP_KEY, "")
        timeout = (int(wait) if wait.isdecimal() else STOP_PATIENCE) + AFTER_THE_END
    cluster.request_stop(job_id)
    end = time.monotonic() + timeout
    while not (job := cluster.job(job_id)).is_over:
        if time.monotonic() > end:
            raise LaunchError(f"job {job_id} is still {job.status} {timeout:g} s after it was told to stop")
        time.sleep(0.2)
    return job
