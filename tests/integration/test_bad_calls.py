"""Wrong calls of the training commands: the status, one clear message, no traceback, nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shards.packing.pack import pack

# Importing torch and DeepSpeed takes most of a wrong call's eight seconds. This process does it once; every call is a
# fork of it, with its own environment, output and exit status, because training leaves a process group behind.
SERVER = """
import json, os, signal, sys, traceback
import launch.training, t4p.tasks.pretrain
from commands.main import main

for line in sys.stdin:
    call = json.loads(line)
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        for stream, name in enumerate(("/dev/null", call["stdout"], call["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), stream)
        os.environ.clear()
        os.environ.update(call["env"])
        sys.argv[1:] = call["arguments"]
        status = 1
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else stop.code is not None
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)  # DeepSpeed's farewell takes seconds
"""
Call = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def t4p(tmp_path_factory: pytest.TempPathFactory, clean_environ: dict[str, str]) -> Iterator[Call]:
    """t4p(*arguments, env=...): the command line as a process of its own, without the seconds of importing."""
    folder = tmp_path_factory.mktemp("calls")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=clean_environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def call(*arguments: str, env: dict[str, str] = clean_environ) -> subprocess.CompletedProcess:
        output = [Path(folder / f"{time.monotonic_ns()}.{name}") for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "env": env, "stdout": str(output[0]), "stderr": str(output[1])}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(arguments, status, *(path.read_text() for path in output))

    yield call
    server.stdin.close()
    server.wait(timeout=30)
    server.stdout.close()


def assert_refused(result, status, *parts):
    assert result.returncode == status, result.stderr
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" not in result.stdout


@pytest.fixture(scope="module")
def shards(tmp_path_factory, tum_sample):
    folder = tmp_path_factory.mktemp("tum") / "shards"
    pack("tum", tum_sample, str(folder))
    return folder


def test_a_config_with_three_mistakes_names_all_three(t4p, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {shards: [x]}\nmodel: {voxel_size: -1, voxel_sise: 2}\ntrain: {zero_stage: 9}\n")
    result = t4p("pretrain", str(path), "run.dir=r")
    assert_refused(
        result,
        2,
        "3 problem(s)",
        "model.voxel_size: wanted more than 0, got -1 [mine.yaml]",
        "model.voxel_sise: unknown key, did you mean 'voxel_size'? [mine.yaml]",
        "train.zero_stage",
    )


def test_a_missing_config_file_is_named(t4p):
    assert_refused(t4p("pretrain", "nowhere.yaml"), 2, "nowhere.yaml: no such file")


def test_missing_shards_are_named_and_no_run_folder_is_made(t4p, tmp_path):
    result = t4p(
        *("pretrain", "configs/smoke.yaml", f"data.shards=[{tmp_path}/none]", f"run.dir={tmp_path}/run"),
    )
    assert_refused(result, 2, f"{tmp_path}/none")
    assert not (tmp_path / "run").exists()


def test_more_workers_than_frames_in_a_batch_are_refused_before_ray_starts(t4p, tmp_path, shards):
    started = time.monotonic()
    result = t4p(
        *("launch", "pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={tmp_path}/run"),
        *("--workers", "3"),
    )
    assert_refused(result, 2, "train.global_batch_size: 2, and there are 3 workers (--workers, or the section cluster)")
    assert time.monotonic() - started < 30
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_dataset_is_refused(t4p, tmp_path, shards):
    result = t4p(
        *("pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={tmp_path}/run"),
        "train.global_batch_size=100",
    )
    assert_refused(result, 2, "the dataset has 4 samples, fewer than one global batch of 100")


def test_a_wrong_s3_secret_says_so(t4p, tmp_path, s3_server, s3_bucket, clean_environ):
    env = clean_environ | dict(s3_server.environ()) | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    result = t4p("pretrain", "configs/smoke.yaml", f"data.shards=[{s3_bucket}]", f"run.dir={tmp_path}/run", env=env)
    assert_refused(result, 1, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY", s3_bucket)


def test_a_bucket_that_does_not_exist_says_so(t4p, tmp_path, s3_server, clean_environ):
    env = clean_environ | dict(s3_server.environ())
    result = t4p(
        "pretrain", "configs/smoke.yaml", "data.shards=[s3://no-such-bucket/x]", f"run.dir={tmp_path}/run", env=env
    )
    assert_refused(result, 2, "there is no bucket 'no-such-bucket'")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.clip.name=RN5", "RN50"),
        ("model.clip.pretrained=/nowhere/weights.pt", "/nowhere/weights.pt"),
        ("model.unet.plan=Res99", "known: Res16UNet14A"),
        ("data.image_size=[100,100]", "multiples of 32"),
        ("model.text_query.num_heads=3", "model.text_query.num_heads: 3 does not divide 64"),
        ("model.text_query.mlp_ratio=1e-4", "model.text_query.mlp_ratio: 0.0001 leaves the MLP no hidden channel"),
        ("model.labels=configs", "model.labels: configs cannot be read"),
        ("run.dir={{ x }}", "stands where a key is wanted"),
        ("run.dir=s3://bucket/run", "not supported yet"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_wrong_call(t4p, tmp_path, shards, override, message):
    result = t4p(
        *("pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={tmp_path}/run", override),
    )
    assert_refused(result, 2, message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("command", [("pretrain",), ("launch", "pretrain")])
def test_a_run_folder_that_cannot_be_says_so(t4p, tmp_path, shards, command):
    blocker = tmp_path / "file"
    blocker.write_text("")
    result = t4p(
        *command,
        "configs/smoke.yaml",
        f"data.shards=[{shards}]",
        f"run.dir={blocker}/run",
    )
    assert_refused(result, 2, f"run.dir {blocker}/run: {blocker} is a file, wanted a folder")


def test_a_flipped_byte_stops_the_run_and_names_the_sample(t4p, tmp_path, shards):
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "shard-000000.tar").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "shard-000000.tar").write_bytes(content)
    result = t4p(
        "pretrain",
        "configs/smoke.yaml",
        f"data.shards=[{copy}]",
        f"run.dir={tmp_path}/run",
    )
    assert_refused(result, 1, "crc32c", "shard-000000.tar", "t4p shards verify")


def test_ctrl_c_saves_and_ends_training_and_its_loaders(tmp_path, shards, clean_environ):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "commands.main", "pretrain", "configs/smoke.yaml"),
            *(f"data.shards=[{shards}]", f"run.dir={run_dir}", "train.num_steps=100000", "data.num_workers=2"),
        ],
        env=clean_environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group gets it
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(list((run_dir / "checkpoints").glob("step_*/COMPLETE.json"))) == 1
    assert re.search(r"stopped by SIGINT: saved step \d+; the same command goes on from it", stderr)
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_order_prints_what_training_reads(t4p, shards):
    call = ("shards", "order", str(shards), "--global-batch-size", "2", "--json")
    whole = t4p(*call).stdout
    assert whole.startswith('{"steps": [{"step": 0, "keys": [')
    parts = [t4p(*call, "--world-size", "2", "--rank", str(rank)) for rank in range(2)]
    assert all(part.returncode == 0 for part in parts)
    refused = t4p(*call[:-1], "--world-size", "3")
    assert_refused(refused, 2, "the world size is 3 but the global batch has 2 samples")
