from __future__ import annotations

from pathlib import Path

import pytest

from launch.job_client import Token, choose_address, find_token
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
