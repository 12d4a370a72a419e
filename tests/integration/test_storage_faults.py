"""A real S3 server behind a proxy that spoils a share of the requests: every call succeeds the first time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import Told, call_in_a_fork
from fault_proxy import FaultProxy
from s3_server import S3Server
from small_model import SMALL

pytestmark = pytest.mark.usefixtures("forked_python")

SOURCE = ["synthetic", "seed=1,rooms=2,frames=5,width=160,height=120"]
CAP = ["--shard-size-mb", "0.15", "--workers", "1"]
TRAINING = [
    "pretrain",
    "configs/smoke.yaml",
    *SMALL,
    "train.num_steps=3",
    "train.warmup_steps=0",
    "train.checkpoint_every=3",
]
TIMES = {"seconds", "data_wait", "samples_per_second", "storage_faults", "fetch_requests", "fetch_bytes", "cache_hits"}


@dataclass(frozen=True)
class Clean:
    """The same on a disk, where nothing fails."""

    objects: dict[str, bytes]
    steps: list[dict[str, float]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, clean_environ: dict[str, str]) -> Clean:
    folder = tmp_path_factory.mktemp("clean")
    pack = ["shards", "pack", *SOURCE, str(folder / "shards"), *CAP]
    train = [*TRAINING, f"data.shards=[{folder / 'shards'}]", f"run.dir={folder / 'run'}"]
    for told in call_in_a_fork([pack, train], clean_environ):
        assert told.status == 0, told.output
    return Clean({path.name: path.read_bytes() for path in (folder / "shards").iterdir()}, steps(folder / "run"))


def steps(run_dir: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def answer(told: Told) -> dict:
    """The JSON object among what a call printed, all streams together."""
    return json.JSONDecoder().raw_decode(told.output[told.output.index("{") :])[0]


def suffer(
    clean: Clean, server: S3Server, environ: dict[str, str], run_dir: Path, rate: float, seed: int, num_verified: int
) -> str:
    """Call everything once through the proxy; what packing said."""
    bucket = server.make_bucket()
    url = f"s3://{bucket}/rooms"
    calls = [
        ["shards", "pack", *SOURCE, url, *CAP],
        ["shards", "info", url, "--json"],
        [*TRAINING, f"data.shards=[{url}]", f"run.dir={run_dir}", f"data.cache_dir={run_dir.parent / 'cache'}"],
        *[["shards", "verify", url, "--json", "--workers", "1"]] * num_verified,
    ]
    with FaultProxy(server.url, rate, seed) as proxy:
        told = call_in_a_fork(calls, environ | server.environ() | {"AWS_ENDPOINT_URL": proxy.url})
        assert proxy.faults.total() > 0.5 * rate * proxy.num_requests
    for call, each in zip(calls, told, strict=True):
        assert each.status == 0, (rate, seed, call, each.output)
    packed, info, _trained, *verified = told
    listed = server.client().list_objects_v2(Bucket=bucket)["Contents"]
    stored = {
        entry["Key"].removeprefix("rooms/"): server.client().get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
        for entry in listed
    }
    assert stored == clean.objects
    assert answer(info)["num_samples"] == 10
    assert steps(run_dir) == clean.steps
    assert list((run_dir.parent / "cache").glob("*.samples"))
    assert [answer(each)["problems"] for each in verified] == [[]] * num_verified
    assert any(answer(each)["storage_faults"] for each in verified)
    return packed.output


def test_one_request_in_ten_spoiled_changes_nothing(
    clean: Clean, s3_server: S3Server, clean_environ: dict[str, str], tmp_path: Path
) -> None:
    said = suffer(clean, s3_server, clean_environ, tmp_path / "run", 0.1, seed=1, num_verified=20)
    assert "answers failed and were asked for again" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["samples_skipped"] == 0 and line["storage_faults"] >= 0 for line in lines)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [2, 3, 4])
@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_any_share_of_requests_spoiled_changes_nothing(
    clean: Clean, s3_server: S3Server, clean_environ: dict[str, str], tmp_path: Path, rate: float, seed: int
) -> None:
    suffer(clean, s3_server, clean_environ, tmp_path / "run", rate, seed, num_verified=30)
