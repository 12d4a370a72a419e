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
    """`ray.train`, with `ray.train.torch`."""
    with needs_extra("launch", "ray", "launching"):
        import ray.train
        import ray.train.torch
    return ray.train


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
