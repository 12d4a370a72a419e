"""What is sent to a cluster as one Ray job, worked out before anything is. Pure: no network, no clock, no files."""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath

from launch.placement import WorkerResources, worker_resources
from t4p.config.check import problems_of_world
from t4p.config.clip_models import is_weights_file
from t4p.config.files import dump_config
from t4p.config.kinds import task_named
from t4p.config.network import FinetunedModelConfig
from t4p.config.tasks import JobConfig
from t4p.errors import ConfigError

CONFIG_FILE = "t4p-job.yaml"
REQUIREMENTS_FILE = "t4p-requirements.txt"

# Seconds between the polite and the certain end of a job that is stopped, beyond what a last checkpoint may take
# (train.save_on_stop). Ray's default of 3 is too short for the command to end its driver and let the workers close
# their logs.
STOP_PATIENCE = 20

# The keys of a job's metadata; the first one marks a job as ours.
VERSION_KEY = "t4p_version"
RUN_DIR_KEY = "run_dir"
WORKERS_KEY = "num_workers"
CONFIG_KEY = "config_sha256"
STOP_KEY = "stop_wait"  # seconds from `t4p launch stop` to the certain end
METADATA_KEYS = (VERSION_KEY, RUN_DIR_KEY, WORKERS_KEY, CONFIG_KEY)


@dataclass(frozen=True)
class WorldSizes:
    """What each worker of a run gets.

    Attributes:
        resources: what a worker reserves on its node.
        micro_batches: per optimizer step.
        frames_per_micro_batch: (fewest, most) frames of one rank; shares differ by at most one.
    """

    num_workers: int
    resources: WorkerResources
    global_batch_size: int
    micro_batches: int
    frames_per_micro_batch: tuple[int, int]


@dataclass(frozen=True)
class JobSpec:
    """One Ray job, whole.

    Attributes:
        job_id: names the run; unique, and fit for a file name and a URL.
        entrypoint: shell command, run in the working directory on the head node.
        entrypoint_num_cpus: 0, so that the entrypoint takes no worker's place. Ray then runs it on the head node.
        env: variables of the entrypoint and of the workers. Whoever may list the cluster's jobs can read them.
        forwarded: names in `env` whose values were asked for and may be secret.
        files: content of the working directory by relative path.
        metadata: what `t4p launch list` reads back.
    """

    job_id: str
    entrypoint: str
    sizes: WorldSizes
    env: Mapping[str, str]
    forwarded: tuple[str, ...]
    files: Mapping[str, bytes] = field(repr=False)
    metadata: Mapping[str, str]
    entrypoint_num_cpus: int = 0

    @property
    def size_bytes(self) -> int:
        """The bytes of the working directory."""
        return sum(len(content) for content in self.files.values())

    @property
    def requirements(self) -> tuple[str, ...]:
        """What the cluster must have installed."""
        return tuple(self.files[REQUIREMENTS_FILE].decode().splitlines())


def world_sizes(config: JobConfig, num_workers: int) -> WorldSizes:
    """The per-rank sizes of a world.

    Raises:
        ConfigError: the batch, or a group of the batch norm, does not divide among this many workers.
    """
    for problem in problems_of_world(config, num_workers):
        raise ConfigError(str(problem))
    batch = config.train.global_batch_size
    micro_batch = batch // config.train.grad_accum_steps
    return WorldSizes(
        num_workers=num_workers,
        resources=worker_resources(config.cluster),
        global_batch_size=batch,
        micro_batches=config.train.grad_accum_steps,
        frames_per_micro_batch=(micro_batch // num_workers, -(-micro_batch // num_workers)),
    )


def build_job_spec(
    config: JobConfig,
    num_workers: int,
    *,
    source: Mapping[str, bytes],
    requirements: Sequence[str],
    version: str,
    forwarded: Mapping[str, str],
    now: datetime,
    suffix: str,
) -> JobSpec:
    """Work out a job.

    Args:
        config: resolved.
        source: the packages' files by their path in the working directory.
        requirements: what the source needs of the cluster, as `torch>=2.11`.
        version: version of this project.
        forwarded: variables of the user's environment that the user asked to send along. Nothing else of it is sent.
        now: local time of the submission, for the job's name.
        suffix: makes the name unique.

    Raises:
        ConfigError: the numbers do not fit, or a path would mean nothing in the cluster; all such paths are named.
    """
    sizes = world_sizes(config, num_workers)
    problems = list(_lost_paths(config, source))
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise ConfigError(
            f"{len(problems)} path(s) mean nothing in the cluster, where a job runs in a folder of its own; give "
            f"absolute paths that every node sees, or s3:// prefixes for shards\n{listed}"
        )
    resolved = dump_config(config).encode()
    stop_wait = STOP_PATIENCE + math.ceil(config.train.save_on_stop)
    return JobSpec(
        job_id=f"{_run_name(config.run.dir)}-{now:%Y%m%d-%H%M%S}-{suffix}",
        entrypoint=_entrypoint(config.task, num_workers),
        sizes=sizes,
        env={"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(stop_wait), **forwarded},
        forwarded=tuple(forwarded),
        files={
            **source,
            CONFIG_FILE: resolved,
            REQUIREMENTS_FILE: "".join(f"{requirement}\n" for requirement in requirements).encode(),
        },
        metadata={
            VERSION_KEY: version,
            RUN_DIR_KEY: config.run.dir,
            WORKERS_KEY: str(num_workers),
            STOP_KEY: str(stop_wait),
            CONFIG_KEY: hashlib.sha256(resolved).hexdigest(),
        },
    )


def wanted_extras(config: JobConfig) -> tuple[str, ...]:
    """The optional dependencies of the project that this configuration needs."""
    return ("minkowski",) if config.model.sparse_backend == "minkowski" else ()


def choose_forwarded(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that `--forward-env` names.

    Raises:
        ConfigError: one of them is not set here.
    """
    absent = [name for name in names if name not in environment]
    if absent:
        raise ConfigError(
            f"--forward-env {' '.join(absent)}: not set in this environment; export it first, or leave the option out"
        )
    return {name: environment[name] for name in names}


def _entrypoint(task: str, num_workers: int) -> str:
    check = ["python", "-m", "launch.jobs.versions", REQUIREMENTS_FILE]
    train = ["python", "-m", "commands.main", "launch", task_named(task).command, CONFIG_FILE]
    train += ["--workers", str(num_workers), "--address", "auto"]
    return f"{shlex.join(check)} && exec {shlex.join(train)}"  # exec: signals and the exit status are the command's own


def _run_name(run_dir: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", PurePosixPath(run_dir).name).strip("-").lower()[:40] or "run"


def _lost_paths(config: JobConfig, shipped: Collection[str]) -> Iterator[str]:
    """Paths that only mean something from the folder in which the user stands, as `key: what was found`."""
    clip = config.model.clip
    paths = [("run.dir", config.run.dir)]
    paths += [("data.shards", url) for url in config.data.urls]
    paths += [("data.validation_shards", shards) for shards in config.data.validation_shards]
    if clip.name.endswith(".json"):
        paths.append(("model.clip.name", clip.name))
    if is_weights_file(clip.pretrained):
        paths.append(("model.clip.pretrained", clip.pretrained))
    if isinstance(config.model, FinetunedModelConfig) and config.model.pretrained is not None:
        paths.append(("model.pretrained", config.model.pretrained))
    if config.train.resume not in ("auto", "never"):
        paths.append(("train.resume", config.train.resume))
    for key, path in paths:
        if "://" not in path and not PurePosixPath(path).is_absolute() and path not in shipped:
            yield f"{key}: {path!r} is a relative path"
