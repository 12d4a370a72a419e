"""The commands as a user meets them: exit status, one message, no traceback."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from commands.shards import app
from shards.images import encode_depth
from shards.reader import DatasetReader


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(clean_environ: dict[str, str], tmp_path: Path) -> Run:
    """Run a command as a process of its own, in the temporary folder."""

    def run(*arguments: object) -> Outcome:
        result = subprocess.run(
            [sys.executable, "-m", "commands.shards", *map(str, arguments)],
            env=clean_environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Outcome(result.returncode, result.stdout, result.stderr)

    return run


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process, in the temporary folder: the same code without a second to start."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [*map(str, arguments)], prog_name="t4p shards")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call


def assert_refused(result: Outcome, status: int, *parts: str) -> None:
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for part in parts:
        assert part in result.stderr


def test_from_raw_frames_to_a_picture(run: Run, call: Run, tum_sample: Path, tmp_path: Path) -> None:
    formats = call("formats")
    assert formats.returncode == 0
    assert all(name in formats.stdout for name in ("seven-scenes", "tum", "folder", "licence"))

    packed = run("pack", "tum", tum_sample, "dataset", "--workers", 1)
    assert (packed.returncode, packed.stderr) == (0, "")
    assert "dataset: 4 samples in 1 shards, 2.4 MB" in packed.stdout
    assert packed.stdout.endswith("next: t4p shards info dataset; t4p shards verify dataset\n")

    verified = run("verify", "dataset")
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.startswith("dataset: all 4 samples in 1 shards are whole")
    assert json.loads(call("verify", "dataset", "--json").stdout)["ok"] is True

    info = json.loads(call("info", "dataset", "--json").stdout)
    assert (info["num_samples"], info["num_shards"]) == (4, 1)
    assert info["bytes"] == (tmp_path / "dataset" / "shard-000000.tar").stat().st_size
    assert info["provenance"]["source_format"] == "tum"
    assert (info["generation"], info["up_axis"], info["voxels_counted"]) == (1, "+z", False)
    assert "CC BY 4.0" in info["licence"]
    told = call("info", "dataset").stdout
    assert "num_samples     4" in told
    assert f"generation      1\nlicence         {info['licence']}\nup_axis         +z\nvoxels_counted  no\n" in told
    assert call("index", "dataset", "--counts").returncode == 0
    told = call("info", "dataset").stdout
    assert "generation      2\n" in told
    assert "voxels_counted  yes\n" in told

    shown = call("show", "dataset", info["first_key"])
    assert (shown.returncode, shown.stderr) == (0, "")
    assert (tmp_path / (info["first_key"].replace("/", "-") + ".png")).stat().st_size > 10_000


def test_wrong_calls_have_exit_status_2(run: Run, call: Run, tum_sample: Path, tmp_path: Path) -> None:
    assert_refused(run("pack", "tum", "nowhere", "d"), 2, "nowhere: no such file or folder")
    assert_refused(call("pack", "tumm", tum_sample, "d"), 2, "unknown format 'tumm'", "did you mean tum?")
    assert_refused(call("pack", "folder", tum_sample, "d"), 2, "needs the depth units per metre: --depth-scale 1000")
    assert_refused(call("pack", "seven-scenes", tum_sample, "d"), 2, "no *.depth.png in it or below")
    assert_refused(call("pack", "tum", tum_sample, "ftp://b/d"), 2, "ftp:// is not supported")
    assert_refused(call("pack", "tum", tum_sample, "d", "--frames", "3"), 2, "--frames is '3', wanted START:STOP")
    assert_refused(call("pack", "tum", tum_sample, "d", "--frames", "9:"), 2, "none of its 4 frames is left")
    for size in ("nan", "inf"):
        assert_refused(call("pack", "tum", tum_sample, "d", "--shard-size-mb", size), 2, f"--shard-size-mb is {size}")
    assert_refused(call("pack", "tum", tum_sample, ""), 2, "the place of the dataset is empty")
    assert_refused(call("pack", "tum", tum_sample, "s3:/b/d"), 2, "s3:/b/d: wanted a folder or s3://bucket/prefix")
    assert_refused(call("verify", "d"), 2, "d: no dataset here")
    assert_refused(call("info", "d"), 2, "d: no dataset here")
    assert not (tmp_path / "d").exists()
    wrong_option = call("pack", "tum", tum_sample, "d", "--every", "0")
    assert wrong_option.returncode == 2
    assert "Traceback" not in wrong_option.stderr


def test_a_place_with_a_dataset_and_a_wrong_key(call: Run, tum_sample: Path) -> None:
    assert call("pack", "tum", tum_sample, "d", "--frames", ":1").returncode == 0
    assert_refused(call("pack", "tum", tum_sample, "d"), 2, "d: already holds a dataset")
    assert_refused(call("show", "d", "no/key"), 2, "no sample 'no/key' among 1; the first is")


def test_broken_frames_have_exit_status_1(run: Run, call: Run, make_scene: Callable[..., Path], tmp_path: Path) -> None:
    source = make_scene(tmp_path / "kitchen", 3)
    good = (source / "frame-000001.depth.png").read_bytes()
    (source / "frame-000001.depth.png").write_bytes(b"not an image")
    for workers in (1, 2):
        assert_refused(
            run("pack", "seven-scenes", source, "d", "--workers", workers),
            1,
            "frame-000001.depth.png: depth cannot be decoded: found 12 bytes starting with b'not an i'",
            "restore the file, or remove the frame",
        )
    (source / "frame-000001.depth.png").write_bytes(encode_depth(np.ones((96, 128), np.uint16)))
    assert_refused(
        call("pack", "seven-scenes", source, "d"),
        1,
        "frame-000001.depth.png): depth is 128x96 but K_depth",
        "it is for about 64x48; give the intrinsics",
    )
    assert not (tmp_path / "d" / "manifest.json").exists()
    (source / "frame-000001.depth.png").write_bytes(good)
    assert call("pack", "seven-scenes", source, "d", "--workers", 1).returncode == 0


def test_colliding_keys_have_exit_status_1(call: Run, make_scene: Callable[..., Path], tmp_path: Path) -> None:
    for parent in ("a", "b"):
        make_scene(tmp_path / "src" / parent / "kitchen", 1)
    assert_refused(
        call("pack", "seven-scenes", "src", "d"), 1, "b/kitchen/frame-000000", "already taken by", "a/kitchen"
    )


def test_verify_names_every_broken_sample(call: Run, make_scene: Callable[..., Path], tmp_path: Path) -> None:
    assert call("pack", "seven-scenes", make_scene(tmp_path / "kitchen", 6), "d").returncode == 0
    path = tmp_path / "d" / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    offsets = DatasetReader(str(tmp_path / "d")).rows(0).offsets
    for i in (1, 4):
        data[offsets[i] + 600] ^= 0xFF
    path.write_bytes(data)
    result = call("verify", "d")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert [f"kitchen/frame-{i:06d}: " in result.stderr for i in range(6)] == [False, True, False, False, True, False]
    assert "error: d: 2 of 6 samples are broken, 3 problems" in result.stderr
    found = json.loads(call("verify", "d", "--json").stdout)
    assert (found["ok"], found["broken_keys"]) == (False, ["kitchen/frame-000001", "kitchen/frame-000004"])
    assert call("show", "d", "kitchen/frame-000000").returncode == 0
    assert_refused(call("show", "d", "kitchen/frame-000001"), 1, "sample kitchen/frame-000001: crc32c is", "wanted")


@pytest.mark.parametrize("command", ["verify", "info"])
def test_only_pack_promises_to_resume(
    call: Run, tum_sample: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    assert call("pack", "tum", tum_sample, "d", "--frames", ":1").returncode == 0

    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shards.verify.verify", stop)
    monkeypatch.setattr("shards.reader.DatasetReader", stop)
    assert call(command, "d") == Outcome(130, "", "stopped\n")
    monkeypatch.setattr("shards.packing.pack.pack", stop)
    assert "the same call again resumes" in call("pack", "tum", tum_sample, "e").stderr


def test_s3_mistakes_are_told_apart(
    call: Run, s3_server, s3_bucket: str, tum_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_bucket.removeprefix("s3://").split("/")[0]
    packed = call("pack", "tum", tum_sample, s3_bucket, "--frames", ":2", "--workers", 2)
    assert packed.returncode == 0, packed.stderr
    assert call("verify", s3_bucket).returncode == 0
    assert json.loads(call("info", s3_bucket, "--json").stdout)["num_samples"] == 2
    for command in (("pack", "tum", tum_sample, "s3://no-such-bucket/x"), ("verify", "s3://no-such-bucket/x")):
        assert_refused(call(*command), 2, "there is no bucket 'no-such-bucket' at http://127.0.0.1")
    with monkeypatch.context() as environment:
        environment.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        for command in (
            ("pack", "tum", tum_sample, f"s3://{bucket}/other"),
            ("verify", s3_bucket),
            ("info", s3_bucket),
        ):
            refusal = call(*command)
            assert_refused(refusal, 1, f"s3://{bucket}/", "SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", closed)
        unreachable = call("pack", "tum", tum_sample, s3_bucket)
    assert_refused(unreachable, 1, f"cannot reach {closed}", "is the server up, and AWS_ENDPOINT_URL right?")
    assert s3_server.client().list_objects_v2(Bucket=bucket, Prefix="other").get("KeyCount", 0) == 0


def test_who_may_only_read_can_use_a_dataset_and_is_told_that_packing_needs_more(
    call: Run, s3_server, s3_bucket: str, tum_sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = s3_bucket.removeprefix("s3://").split("/")[0]
    assert call("pack", "tum", tum_sample, s3_bucket, "--frames", ":2").returncode == 0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
    for command in (("verify", s3_bucket), ("info", s3_bucket)):
        outcome = call(*command)
        assert outcome.returncode == 0, outcome.stderr
    started = sum(os.times()[:4])
    refusal = call("pack", "tum", tum_sample, f"s3://{bucket}/other")
    assert sum(os.times()[:4]) - started < 10, "before the frames are read, not after"
    assert_refused(refusal, 1, f"s3://{bucket}/other", "AccessDenied", "ask for permission on the bucket")
    assert s3_server.client().list_objects_v2(Bucket=bucket, Prefix="other").get("KeyCount", 0) == 0


def test_an_index_by_headers_says_what_it_lacks_until_it_is_filled(
    call: Run, s3_bucket: str, make_scene: Callable[..., Path], tmp_path: Path
) -> None:
    make_scene(tmp_path / "kitchen", 3)
    assert call("pack", "seven-scenes", tmp_path / "kitchen", s3_bucket, "--workers", 1).returncode == 0
    refused = call("index", s3_bucket, "--into", "mine", "--headers-only", "--counts")
    assert refused.returncode == 2
    assert "give one of the two" in refused.stderr
    made = call("index", s3_bucket, "--into", "mine", "--headers-only")
    assert "3 samples in 1 shards, without checksums" in made.stdout
    found = call("verify", "mine", "--workers", 1)
    assert found.returncode == 0
    assert "mine: 3 of 3 samples have no checksum" in found.stderr
    assert "`t4p shards verify mine --fill` writes checksums" in found.stderr
    filled = call("verify", "mine", "--fill", "--workers", 1)
    assert "mine: now has checksums and voxel counts: generation 2 of the manifest" in filled.stdout
    assert "no checksum" not in filled.stderr
    again = json.loads(call("verify", "mine", "--fill", "--json", "--workers", 1).stdout)
    assert (again["num_without_checksum"], again["filled"]) == (0, False)
    assert json.loads(call("info", "mine", "--json").stdout)["checksums"]
