"""Ray, when it is first wanted; the only file that imports it. It takes seconds, and most commands need none."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType
from typing import Any

from shards.errors import needs_extra


def require_ray() -> None:
    """See that Ray is there, without loading it, before a process is started for it.

    Raises:
        MissingExtraError: as every function here: it is not installed.
    """
    with needs_extra("launch", "ray", "launching"):
        if find_spec("ray") is None:
            raise ModuleNotFoundError("No module named 'ray'")


def load_ray() -> ModuleType:
    """Ray itself."""
    with needs_extra("launch", "ray", "launching"):
        import ray
    return ray


def load_ray_train() -> ModuleType:
    """`ray.train`, without `ray.train.torch`: that one imports torch."""
    with needs_extra("launch", "ray", "launching"):
        import ray.train
    return ray.train


def load_trainer() -> Any:
    """The class of trainers that run a function on every rank, of which TorchTrainer is one."""
    with needs_extra("launch", "ray", "launching"):
        from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    return DataParallelTrainer


def load_backend() -> tuple[Any, Any]:
    """The classes Backend and BackendConfig: how the ranks of a worker group are brought together."""
    with needs_extra("launch", "ray", "launching"):
        from ray.train.backend import Backend, BackendConfig
    return Backend, BackendConfig


def load_job_client() -> Any:
    """The class JobSubmissionClient."""
    with needs_extra("launch", "ray", "a job on a cluster"):
        from ray.job_submission import JobSubmissionClient
    return JobSubmissionClient


def load_authentication_error() -> Any:
    """The class of what Ray's client raises where a token is refused."""
    with needs_extra("launch", "ray", "a job on a cluster"):
        from ray.exceptions import AuthenticationError
    return AuthenticationError
