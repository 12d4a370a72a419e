"""Every setting is boto3's decision: one table, each row tried on both clients against a real server."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from fault_proxy import FaultProxy, Message
from s3_server import S3Server

import shards.stores.object_store
import shards.stores.s3
from shards.stores.client import Part
from shards.stores.s3 import S3Client
from shards.stores.store import StoreError

CONTENT = b"content of the object"


@dataclass
class Place:
    """Where a row of the table is tried."""

    server: S3Server
    bucket: str
    folder: Path
    patch: pytest.MonkeyPatch
    heads: list[bytes] = field(default_factory=list)

    def setenv(self, **variables: str) -> None:
        for name, value in variables.items():
            self.patch.setenv(name, value)

    def without_keys(self) -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION"):
            self.patch.delenv(name, raising=False)
        self.setenv(AWS_SHARED_CREDENTIALS_FILE=str(self.folder / "none"), AWS_CONFIG_FILE=str(self.folder / "none"))

    def file(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)


class Recorder(FaultProxy):
    """Passes everything on and keeps the heads of the requests."""

    def __init__(self, url: str, heads: list[bytes]) -> None:
        super().__init__(url, 0.0, 0)
        self.heads = heads

    def _draw(self, request: Message) -> tuple[str, float]:
        self.heads.append(request.head)
        return super()._draw(request)


def profile_file(place: Place) -> None:
    place.without_keys()
    place.patch.delenv("AWS_ENDPOINT_URL")
    keys = f"aws_access_key_id={place.server.access_key}\naws_secret_access_key={place.server.secret_key}\n"
    place.setenv(
        AWS_PROFILE="mine",
        AWS_SHARED_CREDENTIALS_FILE=place.file("credentials", f"[mine]\n{keys}"),
        AWS_CONFIG_FILE=place.file("config", f"[profile mine]\nregion=us-west-2\nendpoint_url={place.server.url}\n"),
    )


def another_service_endpoint_in_the_environment(place: Place) -> None:
    place.setenv(AWS_ENDPOINT_URL_S3=place.server.url, AWS_ENDPOINT_URL="http://127.0.0.1:9")


def region(place: Place) -> None:
    place.setenv(AWS_DEFAULT_REGION="eu-central-1", AWS_REGION="ap-south-1")


def path_addressing(place: Place) -> None:
    place.setenv(AWS_CONFIG_FILE=place.file("config", "[default]\ns3 =\n  addressing_style = path\n"))
    place.setenv(AWS_ENDPOINT_URL=place.server.url.replace("127.0.0.1", "localhost"))


def wrong_token(place: Place) -> None:
    place.setenv(AWS_SESSION_TOKEN="expired")


def no_permission_to_be_anonymous(place: Place) -> None:
    place.setenv(AWS_SKIP_SIGNATURE="true")


def anonymous_without_any_keys(place: Place) -> None:
    place.without_keys()
    place.setenv(AWS_SKIP_SIGNATURE="true")


def settings_that_only_obstore_would_obey(place: Place) -> None:
    place.setenv(AWS_VIRTUAL_HOSTED_STYLE_REQUEST="true", AWS_PROXY_URL="http://127.0.0.1:9", AWS_ENDPOINT="http://a")


TABLE: dict[Callable[[Place], None], str | None] = {
    profile_file: None,
    another_service_endpoint_in_the_environment: None,
    region: None,
    path_addressing: None,
    settings_that_only_obstore_would_obey: None,
    wrong_token: "refuses .InvalidAccessKeyId|InvalidToken|ExpiredToken",
    no_permission_to_be_anonymous: "refuses .AccessDenied",
    anonymous_without_any_keys: "refuses .AccessDenied",
}


@pytest.fixture
def place(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    bucket = s3_bucket.removeprefix("s3://").partition("/")[0]
    s3_server.client().put_object(Bucket=bucket, Key="prefix/object", Body=CONTENT)
    return Place(s3_server, bucket, tmp_path, monkeypatch)


def by_both(place: Place) -> list[bytes | str]:
    """What obstore and boto3 read, or why they do not."""
    found: list[bytes | str] = []
    for by_boto3 in (False, True):  # as in a process forked from one that has used obstore
        place.patch.setattr(shards.stores.object_store, "_with_threads", [0] if by_boto3 else [])
        part = Part(0, 100)
        try:
            S3Client(place.bucket, "prefix").fetch("object", part)
        except StoreError as error:
            found.append(str(error))
        else:
            found.append(b"".join(part.pieces))
        assert shards.stores.object_store._with_threads == ([0] if by_boto3 else [os.getpid()])
    return found


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.__name__)
def test_both_clients_obey_the_same_settings(place: Place, row: Callable[[Place], None]) -> None:
    row(place)
    wanted = TABLE[row]
    for found in by_both(place):
        if wanted is None:
            assert found == CONTENT
        else:
            assert isinstance(found, str)
            assert re.search(wanted, found)


def test_credentials_that_expire_are_asked_for_again(place: Place) -> None:
    place.without_keys()
    script = f"""#!/bin/sh
echo asked >> {place.folder}/asked
cat {place.folder}/keys
"""
    process = Path(place.file("process", script))
    process.chmod(0o755)
    keys = '{{"Version": 1, "AccessKeyId": "{}", "SecretAccessKey": "{}", "Expiration": "2030-01-01T00:00:00Z"}}'
    place.file("keys", keys.format(place.server.access_key, place.server.secret_key))
    place.setenv(AWS_CONFIG_FILE=place.file("config", f"[default]\ncredential_process = {process}\n"))
    place.patch.setattr(shards.stores.s3, "_ASK_AGAIN_AFTER", timedelta(0))
    client = S3Client(place.bucket, "prefix")
    part = Part(0, 100)
    client.fetch("object", part)
    assert part.pieces == [CONTENT]
    # They expire, by botocore's clock, and others take their place.
    connection = client._connect()
    connection.settings.credentials.args[0]._expiry_time -= timedelta(days=100_000 / 24)  # type: ignore[union-attr,attr-defined]
    place.file("keys", keys.format("somebody-else", "secret"))
    with pytest.raises(StoreError, match="InvalidAccessKeyId"):
        client.fetch("object", Part(0, 100))
    assert len((place.folder / "asked").read_text().split()) >= 2


@pytest.mark.parametrize("excluded", [False, True])
def test_a_proxy_is_used_or_not_as_boto3_decides(place: Place, excluded: bool) -> None:
    with Recorder(place.server.url, place.heads) as proxy:
        place.setenv(HTTP_PROXY=proxy.url, http_proxy=proxy.url)
        if not excluded:
            place.setenv(NO_PROXY="example.com", no_proxy="example.com")
        assert by_both(place) == [CONTENT, CONTENT]
    assert len(place.heads) == (0 if excluded else 2)


def test_the_requester_pays_where_asked_to(place: Place) -> None:
    with Recorder(place.server.url, place.heads) as proxy:
        place.setenv(AWS_ENDPOINT_URL=proxy.url)
        by_both(place)
        place.setenv(AWS_REQUEST_PAYER="requester")
        assert by_both(place) == [CONTENT, CONTENT]
    assert [b"x-amz-request-payer: requester" in head.lower() for head in place.heads] == [False] * 2 + [True] * 2


def test_a_bucket_in_the_host_is_where_boto3_puts_it(place: Place) -> None:
    place.setenv(
        AWS_CONFIG_FILE=place.file("config", "[default]\ns3 =\n  addressing_style = virtual\n"),
        AWS_ENDPOINT_URL="http://storage.example:123",
    )
    settings = S3Client("bucket", "prefix")._connect().settings
    assert settings is not None
    assert (settings.endpoint, settings.virtual_hosted) == ("http://bucket.storage.example:123", True)


@pytest.fixture(params=["signed by an authority", "signed by itself"])
def tls(place: Place, request: pytest.FixtureRequest) -> Iterator[str]:
    """The server behind TLS; the bundle that vouches for its certificate is ca.pem."""
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    named = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    own = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-addext", "basicConstraints=CA:FALSE"]
    signed = request.param == "signed by an authority"
    try:
        for one in (["-keyout", "ca-key.pem", "-out", "ca.pem"], [*own, "-keyout", "key.pem", "-out", "cert.pem"]):
            subprocess.run([*make, *named, *one], cwd=place.folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    chain = ("cert.pem", "key.pem") if signed else ("ca.pem", "ca-key.pem")
    context.load_cert_chain(*(place.folder / name for name in chain))
    host, port = place.server.url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                raw, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(raw,), daemon=True).start()

    def serve(raw: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(raw, server_side=True) as client:
            while request := client.recv(65536):  # a request without a body comes at once
                with socket.create_connection((host, int(port))) as server:
                    server.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                    while data := server.recv(65536):
                        client.sendall(data)
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


def test_an_authority_of_ones_own_is_trusted_where_it_is_named(place: Place, tls: str) -> None:
    place.setenv(AWS_ENDPOINT_URL=tls)
    for found in by_both(place):
        assert isinstance(found, str)
        assert "cannot reach" in found
    place.setenv(AWS_CA_BUNDLE=str(place.folder / "ca.pem"))
    assert by_both(place) == [CONTENT, CONTENT]
