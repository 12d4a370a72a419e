"""Wrong calls of the training commands: the status, one clear message, no traceback, nothing half-written."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from shards.pack import pack


def t4p(*arguments, env, timeout=120):
    return subprocess.run(
        [sys.executable, "-m", "t4p.cli", *arguments], env=env, capture_output=True, text=True, timeout=timeout
    )


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


def test_a_config_with_three_mistakes_names_all_three(tmp_path, clean_environ):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {shards: [x]}\nmodel: {voxel_size: -1, voxel_sise: 2}\ntrain: {zero_stage: 9}\n")
    result = t4p("pretrain", str(path), "run.dir=r", env=clean_environ)
    assert_refused(
        result,
        2,
        "3 problem(s)",
        "model.voxel_size: Input should be greater than 0, got -1 [mine.yaml]",
        "model.voxel_sise: unknown key, did you mean 'voxel_size'? [mine.yaml]",
        "train.zero_stage",
    )


def test_a_missing_config_file_is_named(clean_environ):
    assert_refused(t4p("pretrain", "nowhere.yaml", env=clean_environ), 2, "nowhere.yaml: no such file")


def test_missing_shards_are_named_and_no_run_folder_is_made(tmp_path, clean_environ):
    result = t4p(
        *("pretrain", "configs/smoke.yaml", f"data.shards=[{tmp_path}/none]", f"run.dir={tmp_path}/run"),
        env=clean_environ,
    )
    assert result.returncode in (1, 2)
    assert_refused(result, result.returncode, f"{tmp_path}/none")
    assert not (tmp_path / "run").exists()


def test_more_workers_than_frames_in_a_batch_are_refused_before_ray_starts(tmp_path, shards, clean_environ):
    started = time.monotonic()
    result = t4p(
        *("launch", "pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={tmp_path}/run"),
        *("--workers", "3"),
        env=clean_environ,
    )
    assert_refused(result, 2, "--workers is 3", "train.global_batch_size is 2")
    assert time.monotonic() - started < 30
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_dataset_is_refused(tmp_path, shards, clean_environ):
    result = t4p(
        *("pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={tmp_path}/run"),
        "train.global_batch_size=100",
        env=clean_environ,
    )
    assert_refused(result, 2, "the dataset has 4 samples, fewer than one global batch of 100")


def test_a_wrong_s3_secret_says_so(tmp_path, s3_server, s3_bucket, clean_environ):
    env = clean_environ | dict(s3_server.environ()) | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    result = t4p("pretrain", "configs/smoke.yaml", f"data.shards=[{s3_bucket}]", f"run.dir={tmp_path}/run", env=env)
    assert_refused(result, 1, "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY", s3_bucket)


def test_a_bucket_that_does_not_exist_says_so(tmp_path, s3_server, clean_environ):
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
    ],
)
def test_a_model_that_cannot_be_built_is_a_wrong_call(tmp_path, shards, clean_environ, override, message):
    result = t4p(
        *("pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={tmp_path}/run", override),
        env=clean_environ,
    )
    assert_refused(result, 2, message)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_folder_that_cannot_be_written_says_so(tmp_path, shards, clean_environ):
    blocker = tmp_path / "file"
    blocker.write_text("")
    result = t4p(
        "pretrain", "configs/smoke.yaml", f"data.shards=[{shards}]", f"run.dir={blocker}/run", env=clean_environ
    )
    assert_refused(result, 2, f"run.dir {blocker}/run: cannot be written")


def test_a_flipped_byte_stops_the_run_and_names_the_sample(tmp_path, shards, clean_environ):
    copy = tmp_path / "shards"
    copy.mkdir()
    for path in shards.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "shard-000000.tar").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "shard-000000.tar").write_bytes(content)
    result = t4p(
        "pretrain", "configs/smoke.yaml", f"data.shards=[{copy}]", f"run.dir={tmp_path}/run", env=clean_environ
    )
    assert_refused(result, 1, "crc32c", "shard-000000.tar", "t4p shards verify")


def test_ctrl_c_ends_training_and_its_loaders(tmp_path, shards, clean_environ):
    run_dir = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "t4p.cli", "pretrain", "configs/smoke.yaml"),
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
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_order_prints_what_training_reads(shards, clean_environ):
    call = ("shards", "order", str(shards), "--global-batch-size", "2", "--json")
    whole = t4p(*call, env=clean_environ).stdout
    assert whole.startswith('{"steps": [{"step": 0, "keys": [')
    parts = [t4p(*call, "--world-size", "2", "--rank", str(rank), env=clean_environ) for rank in range(2)]
    assert all(part.returncode == 0 for part in parts)
    refused = t4p(*call[:-1], "--world-size", "3", env=clean_environ)
    assert_refused(refused, 2, "the world size is 3 but the global batch has 2 samples")
