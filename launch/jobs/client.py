"""The jobs of one cluster over HTTP: Ray's own client with a token, bounded waits, and errors that say what to do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import LaunchError
from launch.jobs.spec import JobSpec
from launch.ray_package import load_authentication_error, load_job_client
from t4p.errors import ConfigError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
# Seconds to connect, and between two bytes of an answer. The second pair is for a cluster that has answered before:
# it may be busy, or be taking in a working directory.
FIRST_CONTACT = (5.0, 10.0)
LATER = (5.0, 60.0)
# What reading an answer raises that is JSON, but not as expected.
ANSWER_OF_ANOTHER_SHAPE = (LookupError, TypeError)
LONGEST_TOKEN = 4096  # a header's worth
TOKEN_HELP = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN=TOKEN) to the token that the cluster was "
    "started with"
)


@dataclass(frozen=True)
class Token:
    """What proves to the cluster that the user may run code there.

    Attributes:
        origin: where it was found, for messages; never the token itself.
    """

    value: str
    origin: str

    def __repr__(self) -> str:
        return f"Token(from {self.origin})"


@dataclass(frozen=True)
class JobState:
    """What the cluster says of one job.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started, ended: seconds since the epoch; None where it has not.
        exit_code: exit status of the entrypoint, once it ended by itself.
        message: words of Ray; for a failed job it ends with the end of the log.
    """

    job_id: str
    status: str
    metadata: Mapping[str, str]
    started: float | None
    ended: float | None
    exit_code: int | None
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


def find_token(environment: Mapping[str, str], home: Path) -> Token | None:
    """The token, looked for where Ray itself looks.

    Returns:
        None where the user switched authentication off by RAY_AUTH_MODE=disabled.

    Raises:
        ConfigError: there is none. A cluster without authentication runs code for anyone who reaches it, so leaving
            it out has to be said.
    """
    if environment.get("RAY_AUTH_MODE", "token") == "disabled":
        return None
    if value := environment.get("RAY_AUTH_TOKEN", "").strip():
        return _checked(value, "RAY_AUTH_TOKEN")
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    origin = f"RAY_AUTH_TOKEN_PATH ({path})" if named else str(path)
    try:
        with path.open("rb") as file:
            value = file.read(LONGEST_TOKEN + 10).decode("utf-8", errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"no token for the cluster: {origin} cannot be read ({error}); {TOKEN_HELP}") from error
    if not value:
        raise ConfigError(f"no token for the cluster: {origin} is empty; {TOKEN_HELP}")
    return _checked(value, origin)


def _checked(value: str, origin: str) -> Token:
    """A token that fits into a header.

    Raises:
        ConfigError: it does not. Without a word of what was found, which may be another secret, or this one and more;
            the HTTP library would quote it all.
    """
    if len(value) > LONGEST_TOKEN or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(
            f"no token for the cluster: what {origin} holds is none (not shown here); wanted one word of at most "
            f"{LONGEST_TOKEN} ASCII characters, as `ray get-auth-token` prints it; {TOKEN_HELP}"
        )
    return Token(value, origin)


def choose_address(address: str | None, environment: Mapping[str, str]) -> str:
    """The address given, else that of the environment.

    Raises:
        ConfigError: there is none, or it is no URL.
    """
    address = address or environment.get(ADDRESS_VARIABLE)
    if not address:
        raise ConfigError(
            f"no cluster named: give --address http://HOST:8265 (Ray's dashboard), or set {ADDRESS_VARIABLE}"
        )
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address is {address!r}; wanted the URL of Ray's dashboard, such as http://HOST:8265")
    return address.rstrip("/")


class Cluster:
    """The jobs of the cluster behind one address. Every method raises as `_explained` says."""

    def __init__(self, address: str, token: Token | None) -> None:
        """Connect.

        Raises:
            ConfigError: nothing answers there, or the token is refused.
        """
        self.address = address
        self._token = token
        with self._explained(first=True), _ray_environment(address):
            self._client = _bounded_client(address, token)

    def ray_version(self) -> str:
        """The version of Ray on the head."""
        return self._read("/api/version")["ray_version"]

    def nodes(self) -> list[dict[str, float]]:
        """Per living node, the total of each resource by Ray's name."""
        with self._explained():
            listed = self._read("/api/v0/nodes?limit=10000")["data"]["result"]["result"]
            return [node["resources_total"] for node in listed if node["state"] == "ALIVE"]

    def submit(self, spec: JobSpec, working_dir: Path) -> None:
        """Send a job whose working directory has been laid out in a folder."""
        with self._explained():
            self._client.submit_job(
                submission_id=spec.job_id,
                entrypoint=spec.entrypoint,
                entrypoint_num_cpus=spec.entrypoint_num_cpus,
                runtime_env={"working_dir": str(working_dir), "env_vars": dict(spec.env)},
                metadata=dict(spec.metadata),
            )

    def jobs(self) -> list[JobState]:
        """Every submitted job that the cluster remembers, others' too; the oldest first."""
        with self._explained():
            details = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted((_state_of(job) for job in details), key=lambda job: job.started or 0)

    def job(self, job_id: str) -> JobState:
        with self._explained(job_id):
            return _state_of(self._client.get_job_info(job_id))

    def log(self, job_id: str) -> str:
        """All that the entrypoint has printed so far."""
        with self._explained(job_id):
            return self._client.get_job_logs(job_id)

    def request_stop(self, job_id: str) -> None:
        """Ask for the end of a job; returns before it has ended."""
        with self._explained(job_id):
            self._client.stop_job(job_id)

    def _read(self, path: str) -> dict[str, Any]:
        with self._explained():
            response = self._client._do_request("GET", path)
            response.raise_for_status()
            return response.json()

    @contextmanager
    def _explained(self, job_id: str | None = None, *, first: bool = False) -> Iterator[None]:
        """Turn what Ray's client raises into one message.

        Args:
            job_id: name of the job that is asked for.
            first: nothing has answered at this address yet, so the address may be wrong.

        Raises:
            ConfigError: the token is refused, the address is wrong, or there is no such job.
            LaunchError: the cluster answered before and does not any more, or refuses what was sent.
        """
        AuthenticationError = load_authentication_error()
        import requests  # comes with Ray

        try:
            yield
        except AuthenticationError as error:
            if self._token is None:
                raise ConfigError(
                    f"{self.address} wants a token, and RAY_AUTH_MODE is disabled; {TOKEN_HELP}"
                ) from error
            raise ConfigError(f"{self.address} refused the token from {self._token.origin}; {TOKEN_HELP}") from error
        except (requests.exceptions.RequestException, ConnectionError, ValueError, *ANSWER_OF_ANOTHER_SHAPE) as error:
            if first:
                raise ConfigError(
                    f"--address {self.address}: no Ray answers there ({_innermost(error)}); check host, port and "
                    "tunnel: it is the address of the dashboard, http://HOST:8265 by default"
                ) from error
            if isinstance(error, requests.exceptions.HTTPError):
                raise LaunchError(f"{self.address} refused: {error}") from error
            if isinstance(error, ANSWER_OF_ANOTHER_SHAPE):
                raise LaunchError(
                    f"{self.address} answered what this version of Ray cannot read ({error!r}); "
                    "`t4p launch pretrain --dry-run` shows the version that the cluster should run"
                ) from error
            raise LaunchError(f"{self.address} does not answer any more ({_innermost(error)})") from error
        except RuntimeError as error:
            # As Ray's client words it. The rest quotes the answer, where the name of a job may hold any number.
            if job_id is not None and str(error).startswith("Request failed with status code 404"):
                raise ConfigError(
                    f"there is no job {job_id} at {self.address}; `t4p launch list` shows those there are"
                ) from error
            if first:
                raise ConfigError(f"--address {self.address}: what answers there is no Ray ({error})") from error
            raise LaunchError(f"{self.address} refused: {error}") from error


def _bounded_client(address: str, token: Token | None) -> Any:
    """Ray's client, which by itself would wait for ever for a host that drops packets."""
    ray_client: Any = load_job_client()
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # it tells of every upload

    class BoundedClient(ray_client):
        timeout = FIRST_CONTACT

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": self.timeout, **options})

    client = BoundedClient(address, headers={"Authorization": f"Bearer {token.value}"} if token else None)
    client.timeout = LATER
    return client


@contextmanager
def _ray_environment(address: str) -> Iterator[None]:
    """Make Ray's client go where it is told: to it, this variable and RAY_ADDRESS outrank its own argument."""
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


def _state_of(details: Any) -> JobState:
    return JobState(
        job_id=details.submission_id,
        status=str(details.status.value),
        metadata=dict(details.metadata or {}),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=details.message or "",
    )


def _innermost(error: BaseException) -> str:
    """The cause that a person recognises, out of the layers of an HTTP library."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(error) or type(error).__name__
