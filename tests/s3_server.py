"""A real S3 server (SeaweedFS) on 127.0.0.1 for the length of a test session."""

import http.client
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import boto3
import botocore.config
import botocore.exceptions
from ports import free_ports

INSTALL_HINT = "no `weed` binary: pip install --require-hashes --no-deps -r tests/requirements-s3.txt"
_PORTS = ("s3", "master", "volume", "filer", "admin")
_START_TIMEOUT = 60.0


@dataclass(frozen=True)
class S3Server:
    """A running server.

    Attributes:
        url: http://127.0.0.1:PORT.
        access_key: of an identity that may do everything.
        secret_key: of that identity.
        reader_access_key: of an identity that may read and list, and write nothing.
        reader_secret_key: of that identity.
        process: the server, ended by `stop`.
    """

    url: str
    access_key: str
    secret_key: str
    reader_access_key: str
    reader_secret_key: str
    process: subprocess.Popen

    def environ(self) -> dict[str, str]:
        """What boto3 must find in the environment to talk to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    def client(self):
        """A boto3 client with the right credentials, whatever the environment says."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=botocore.config.Config(retries={"total_max_attempts": 1}, connect_timeout=2, proxies={}),
        )

    def make_bucket(self) -> str:
        """Create a fresh bucket and return its name."""
        name = f"test-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name

    def stop(self) -> None:
        """End the server."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def find_binary() -> str | None:
    """The server's binary, beside this Python or on PATH."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


def start_s3_server(folder: Path) -> S3Server:
    """Start a server that keeps its data in `folder`, and wait until it has stored an object."""
    access_key, secret_key = f"key-{secrets.token_hex(6)}", secrets.token_hex(20)
    reader_access_key, reader_secret_key = f"key-{secrets.token_hex(6)}", secrets.token_hex(20)
    identities = [
        _identity("writer", access_key, secret_key, ["Admin", "Read", "Write", "List", "Tagging"]),
        _identity("reader", reader_access_key, reader_secret_key, ["Read", "List"]),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = free_ports(2 * len(_PORTS))
    # Every port is given: servers that run side by side collide on the defaults. Nothing listens beyond loopback.
    command = [
        find_binary() or "weed",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        "-volume.max=1000",  # every bucket takes one: as many as the disk has gigabytes would be few on a small one
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.allowDeleteBucketNotEmpty=false",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.localSocket={folder / 's3.sock'}",
        f"-filer.localSocket={folder / 'filer.sock'}",
    ]
    for name, port, grpc_port in zip(_PORTS, ports[::2], ports[1::2], strict=True):
        command += [f"-{name}.port={port}", f"-{name}.port.grpc={grpc_port}"]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=dict(os.environ))
    server = S3Server(
        f"http://127.0.0.1:{ports[0]}", access_key, secret_key, reader_access_key, reader_secret_key, process
    )
    try:
        _wait_until_it_stores(server, ports[0], folder)
    except BaseException:
        server.stop()
        raise
    return server


def _identity(name: str, access_key: str, secret_key: str, actions: list[str]) -> dict:
    credentials = [{"accessKey": access_key, "secretKey": secret_key}]
    return {"name": name, "credentials": credentials, "actions": actions}


def _wait_until_it_stores(server: S3Server, port: int, folder: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    bucket = None
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
            bucket = bucket or server.make_bucket()
            server.client().put_object(Bucket=bucket, Key="ready", Body=b"yes")
            return
        except (OSError, http.client.HTTPException, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            if server.process.poll() is not None or time.monotonic() > deadline:
                log = (folder / "server.log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the S3 server did not start (exit {server.process.poll()}):\n{log}") from None
            time.sleep(0.05)
