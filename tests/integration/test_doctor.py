"""The doctor on the real things: every package of this environment, a private Ray, a real S3 server."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
from s3_server import S3Server

from commands.doctor.checks import STORAGE, Row, make

# 40 CPU seconds, half of them Ray's: about a minute on two cores that others use too.
PATIENCE = 900
# In the environment of everything that the doctor starts.
MARK = "T4P_TEST_DOCTOR"


@pytest.fixture(scope="module")
def examined(s3_server: S3Server, clean_environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """One run of the command in a folder and a bucket of its own: (process, bucket)."""
    bucket = s3_server.make_bucket()
    process = subprocess.run(
        [sys.executable, "-m", "commands.main", "doctor", "--json", "--url", f"s3://{bucket}/prefix"],
        env={**clean_environ, **s3_server.environ(), MARK: bucket},
        cwd=tmp_path_factory.mktemp("doctor"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return process, bucket


def try_storage(url: str) -> Row:
    return make(replace(STORAGE, arguments=(url,)))


@pytest.mark.slow
@pytest.mark.ray
def test_this_environment_has_everything_that_is_needed(examined: tuple) -> None:
    process, _ = examined
    checks = {check["name"]: check for check in json.loads(process.stdout)["checks"]}
    assert {
        name: check["found"] for name, check in checks.items() if check["needed"] and check["state"] != "works"
    } == {}
    assert (process.returncode, process.stderr) == (0, "")
    assert "ran one worker and left nothing behind" in checks["ray"]["found"]
    assert "took two steps" in checks["deepspeed"]["found"]
    assert checks["gpu"]["state"] in ("works", "missing")
    figures = checks["storage"]["figures"]
    assert min(figures[name] for name in ("up_mb_per_second", "down_mb_per_second", "request_ms")) > 0


@pytest.mark.slow
@pytest.mark.ray
def test_nothing_is_left_behind(examined: tuple, s3_server: S3Server) -> None:
    _, bucket = examined
    assert s3_server.client().list_objects_v2(Bucket=bucket).get("KeyCount", 0) == 0
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it ends meanwhile, or is another user's
            if process.environ().get(MARK) == bucket:
                left.append(process.cmdline())
    assert left == []


def test_who_may_only_read_is_told_so_and_what_that_is_good_for(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
    refused = try_storage(s3_bucket)
    assert refused.is_failure
    assert refused.finding.found.startswith(f"put: {s3_bucket}/t4p-doctor-")
    assert "refuses (AccessDenied)" in refused.finding.found
    assert "\n" not in refused.finding.found
    assert refused.finding.fix.startswith("ask for permission on the bucket (s3:ListBucket as well")
    assert refused.finding.fix.endswith(
        f" (to train on what is there, reading is enough: t4p shards verify {s3_bucket})"
    )


def test_a_closed_port_is_a_row_in_seconds(s3_bucket: str, closed_endpoint: str) -> None:
    began = time.monotonic()
    unreachable = try_storage(s3_bucket)
    assert time.monotonic() - began < 150, "boto3's own patience would be 5 times 60 s"
    assert unreachable.is_failure
    assert f"cannot reach {closed_endpoint}" in unreachable.finding.found
    assert unreachable.finding.fix == "is the server up, and AWS_ENDPOINT_URL right?"
    assert "Traceback" not in unreachable.finding.found


def test_a_bucket_that_is_not_there_is_named_and_not_made(s3_server: S3Server, s3_bucket: str) -> None:
    finding = try_storage("s3://no-such-bucket/x").finding
    assert "no-such-bucket" not in [bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]]
    assert finding.state == "broken"
    assert "there is no bucket 'no-such-bucket'" in finding.found
    assert finding.fix == "create it, or correct the name"
