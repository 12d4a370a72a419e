from __future__ import annotations

from pathlib import Path

import pytest
import requests

from launch.errors import LaunchError
from launch.jobs.client import Cluster, Token, choose_address, find_token
from t4p.errors import ConfigError


def test_a_token_is_looked_for_where_ray_looks_and_in_its_order(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-home\n")
    named = tmp_path / "named"
    named.write_text("of-file\n")
    found = [
        find_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": str(named)}, tmp_path),
        find_token({"RAY_AUTH_TOKEN_PATH": str(named)}, tmp_path),
        find_token({}, tmp_path),
    ]
    assert [token.value for token in found if token] == ["given", "of-file", "of-home"]
    assert [token.origin for token in found if token] == [
        "RAY_AUTH_TOKEN",
        f"RAY_AUTH_TOKEN_PATH ({named})",
        str(tmp_path / ".ray" / "auth_token"),
    ]


def test_doing_without_a_token_has_to_be_said(tmp_path: Path) -> None:
    assert find_token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "x"}, tmp_path) is None
    for environment in ({}, {"RAY_AUTH_MODE": "token"}, {"RAY_AUTH_TOKEN_PATH": str(tmp_path)}):
        with pytest.raises(ConfigError, match="no token") as refused:
            find_token(environment, tmp_path)
        assert "RAY_AUTH_TOKEN_PATH=FILE (or RAY_AUTH_TOKEN=TOKEN)" in str(refused.value)


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(ConfigError, match="is empty"):
        find_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "empty")}, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"s3cret\nother: header",
        b"s3cret\r\nX: y",
        b"s3cret word",
        "s3cret\u00fc".encode(),
        b"s3cret\xff",
        b"s3cret\x00",
        b"s3cret\x1b[31m",
        b"s3cret" * 1000,
        b'{"token": "s3cret", "user": "me"}',
    ],
)
def test_what_is_no_token_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    named = tmp_path / "named"
    named.write_bytes(content)
    environments = [{"RAY_AUTH_TOKEN_PATH": str(named)}]
    if b"\xff" not in content:
        environments.append({"RAY_AUTH_TOKEN": content.decode()})
    for environment in environments:
        with pytest.raises(ConfigError, match=r"holds is none \(not shown here\); wanted one word") as refused:
            find_token(environment, tmp_path)
        assert "s3cret" not in str(refused.value)


def test_a_token_does_not_show_in_its_repr() -> None:
    assert "s3cret" not in repr(Token("s3cret", "RAY_AUTH_TOKEN"))


def test_the_address_given_outranks_the_environment() -> None:
    environment = {"RAY_API_SERVER_ADDRESS": "http://there:8265/"}
    assert choose_address("https://here:8265/ray/", environment) == "https://here:8265/ray"
    assert choose_address(None, environment) == "http://there:8265"


@pytest.mark.parametrize("address", ["here:8265", "ray://here:10001", "auto", "s3://here"])
def test_an_address_that_is_no_url_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=f"{address!r}; wanted the URL"):
        choose_address(address, {})


def test_without_an_address_both_ways_to_give_one_are_named() -> None:
    with pytest.raises(ConfigError, match=r"--address http://HOST:8265.*RAY_API_SERVER_ADDRESS"):
        choose_address(None, {})


class AnsweringClient:
    """Ray's client, with one answer to everything."""

    def __init__(self, status: int, body: str) -> None:
        self._status, self._body = status, body

    def _do_request(self, method: str, endpoint: str) -> requests.Response:
        response = requests.Response()
        response.status_code, response._content = self._status, self._body.encode()
        return response

    def get_job_info(self, job_id: str) -> None:
        raise RuntimeError(f"Request failed with status code {self._status}: {self._body}.")


def cluster_that_answers(status: int, body: str) -> Cluster:
    cluster = Cluster.__new__(Cluster)  # no connection
    cluster.address, cluster._token = "http://here:8265", None
    cluster._client = AnsweringClient(status, body)
    return cluster


def test_a_job_that_is_not_there_is_told_from_an_error_that_names_one() -> None:
    job_id = "run-20260404-120000-ab12"
    with pytest.raises(ConfigError, match=f"there is no job {job_id}"):
        cluster_that_answers(404, f"Job {job_id} does not exist").job(job_id)
    with pytest.raises(LaunchError, match="refused: Request failed with status code 500"):
        cluster_that_answers(500, f"Traceback ... {job_id}").job(job_id)


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (500, "{}", "http://here:8265 refused: 500 Server Error"),
        (200, "<html>", "does not answer any more"),
        (200, '{"data": null}', "answered what this version of Ray cannot read"),
        (200, '{"msg": "no"}', "answered what this version of Ray cannot read"),
    ],
)
def test_an_answer_without_nodes_is_an_error_of_the_cluster(status: int, body: str, wanted: str) -> None:
    with pytest.raises(LaunchError, match=wanted):
        cluster_that_answers(status, body).nodes()
