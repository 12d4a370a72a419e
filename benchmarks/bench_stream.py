"""Samples a second out of object storage, one process, beside the readers that people use.

A real S3 server on loopback behind a proxy that waits 0, 20 and 80 ms before it passes on a request; frames made of
real ones, no two alike. Every reader runs in a fresh process, in turns, its packages imported before the clock starts.

rate      samples a second from the first one on: reading ahead of it counts, so that nothing is hidden in a start
cpu_ms    CPU milliseconds a sample from there on, of the process and its children
whole     samples a second from opening to the last sample
whole_cpu CPU milliseconds a sample from opening to the end
first     seconds from opening to the first sample
requests  of any kind, a sample
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import psutil
import typer
from raw_frames import multiply_frames
from record import REPOSITORY, record
from rich.console import Console
from rich.table import Table
from stream_readers import OURS, READERS, convert

SHARD_MB = 16


def main(
    frames: Annotated[Path | None, typer.Argument(help="A folder of real frames in the layout of 7-Scenes.")] = None,
    samples: Annotated[int, typer.Option(min=100, help="Frames made of them.")] = 3000,
    delays: Annotated[str, typer.Option(help="Milliseconds a request.")] = "0,20,80",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    readers: Annotated[str, typer.Option(help="Which; all by default.")] = ",".join([*OURS, *READERS]),
    raw: Annotated[Path | None, typer.Option(help="Frames that an earlier call made, or where to make them.")] = None,
    peers_python: Annotated[
        str, typer.Option(help="A Python that has the peers (pip install .[bench]).")
    ] = sys.executable,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    shuffle_block: Annotated[int, typer.Option(help="Bytes of our blocks, as data.shuffle_block.")] = 8 << 20,
    be: Annotated[str | None, typer.Option(help="Internal: be one of the readers.", hidden=True)] = None,
    url: Annotated[str, typer.Option(hidden=True)] = "",
    dataset: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Time every reader at every delay."""
    if be == "convert":
        convert(dataset, url)
        return
    if be is not None:
        be_reader(be, url, shuffle_block)
        return
    with stored_frames(frames, raw, samples) as (packed, environ):
        own = [*python(peers_python), __file__, "--url", "s3://bench/data", "--shuffle-block", str(shuffle_block)]
        if set(readers.split(",")) & READERS.keys():
            subprocess.run([*own, "--be", "convert", "--dataset", str(packed)], check=True, env=environ)
        rows = []
        for delay in (float(text) for text in delays.split(",")):
            rows += measure_at(delay, readers.split(","), repeats, own, environ)
    figures = {f"{row['reader']}_{row['delay_ms']:g}_{name}": row[name] for row in rows for name in ("rate", "cpu_ms")}
    report = record("stream", samples, figures, rows, ("obstore", "boto3", "webdataset"))
    if as_json:
        print(json.dumps(report))
        return
    table = Table(*rows[0], title="raw samples from S3, one process")
    for row in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


@contextmanager
def stored_frames(frames: Path | None, raw: Path | None, samples: int) -> Iterator[tuple[Path, dict[str, str]]]:
    """Frames made of real ones, packed into a folder and from there into s3://bench/data of a real server.

    Args:
        frames: the real ones; None is a mistake of the caller's.
        raw: frames that were made already, or where to make them; None for a place that goes.
        samples: how many to make.

    Yields:
        The folder, and the environment that finds the server.
    """
    if frames is None:
        raise typer.BadParameter("a folder of real frames is wanted")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        if not (raw := raw or folder / "raw").is_dir():
            multiply_frames(frames, raw, samples)
        environ = start_server(folder, stack)
        packed = folder / "packed"
        subprocess.run(
            [*python(sys.executable), "-m", "commands.main", "shards", "pack", "seven-scenes", str(raw), str(packed)]
            + ["--shard-size-mb", str(SHARD_MB)],
            check=True,
            env=environ,
            stdout=subprocess.DEVNULL,
        )
        upload(packed, "data", environ)
        yield packed, environ


def be_reader(name: str, url: str, shuffle_block: int) -> None:
    """Read everything, and print what it took."""
    try:
        read = OURS[name](url, shuffle_block) if name in OURS else READERS[name](url)
        before = cpu_seconds()
        began = time.monotonic()
        stamps, at_first = [], before
        for _ in read():
            stamps.append(time.monotonic())
            if len(stamps) == 1:
                at_first = cpu_seconds()
        ended = cpu_seconds()
    except Exception as error:
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"[:300]}))
        return
    print(
        json.dumps(
            {
                "samples": len(stamps),
                "rate": (len(stamps) - 1) / (stamps[-1] - stamps[0]),
                "cpu": (ended - at_first) / (len(stamps) - 1),
                "whole": len(stamps) / (stamps[-1] - began),
                "whole_cpu": (ended - before) / len(stamps),
                "first": stamps[0] - began,
            }
        )
    )


def cpu_seconds() -> float:
    """Of this process, its children, and those that have ended."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def measure_at(
    delay: float, readers: list[str], repeats: int, own: list[str], environ: dict[str, str]
) -> list[dict[str, Any]]:
    """A row for every reader."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    with behind_proxy(delay, environ) as (behind, num_requests):
        for _ in range(repeats):
            for name in readers:
                ran = subprocess.run([*own, "--be", name], env=behind, capture_output=True, text=True)
                lines = ran.stdout.strip().splitlines() or ["{}"]
                said = json.loads(lines[-1]) if lines[-1].startswith("{") else {}
                said["requests"] = num_requests()
                if "rate" not in said:
                    print(f"{name}: {said.get('failed') or ran.stderr[-300:]}", file=sys.stderr)
                else:
                    found[name].append(said)
    total = max((said["samples"] for runs in found.values() for said in runs), default=1)
    return [row_of(name, delay, runs, total) for name, runs in found.items()]


@contextmanager
def behind_proxy(delay: float, environ: dict[str, str]) -> Iterator[tuple[dict[str, str], Callable[[], int]]]:
    """The environment that finds the server so many milliseconds away, and how many requests came since last asked."""
    port = environ["AWS_ENDPOINT_URL"].rpartition(":")[2]
    proxy = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("delay_proxy.py")), port, str(delay)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert proxy.stdin is not None
    assert proxy.stdout is not None
    asked, answers = proxy.stdin, proxy.stdout

    def num_requests() -> int:
        asked.write("\n")
        asked.flush()
        return sum(json.loads(answers.readline()).values())

    try:
        yield {**environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{answers.readline().strip()}"}, num_requests
    finally:
        proxy.kill()
        proxy.wait()


def row_of(name: str, delay: float, runs: list[dict[str, Any]], samples: int) -> dict[str, Any]:
    """Medians. Who yields tars or parts is counted in the samples that they hold."""

    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    per_yield = samples / runs[0]["samples"] if runs[0]["samples"] < samples / 2 else 1.0
    return {
        "delay_ms": delay,
        "reader": name,
        "rate": median("rate") * per_yield,
        "cpu_ms": 1000 * median("cpu") / per_yield,
        "whole": median("whole") * per_yield,
        "whole_cpu": 1000 * median("whole_cpu") / per_yield,
        "first": median("first"),
        "requests": median("requests") / runs[0]["samples"] / per_yield,
        "runs": len(runs),
    }


def start_server(folder: Path, stack: ExitStack) -> dict[str, str]:
    """A real S3 server with the bucket `bench`; returns the environment that finds it."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from s3_server import start_s3_server

    (folder / "s3").mkdir()
    server = start_s3_server(folder / "s3")
    stack.callback(server.stop)
    server.client().create_bucket(Bucket="bench")
    environ = {**os.environ, **server.environ(), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return {**environ, "S3_ENDPOINT_URL": server.url, "T4P_CACHE": str(folder / "cache")}


def upload(packed: Path, name: str, environ: dict[str, str]) -> None:
    """Put a packed folder into the bucket as it is."""
    import boto3

    client = boto3.client("s3", **credentials(environ))
    for path in sorted(packed.iterdir()):
        client.upload_file(str(path), "bench", f"{name}/{path.name}")


def credentials(environ: dict[str, str]) -> dict[str, str]:
    """What boto3 is told instead of the environment."""
    return {
        "endpoint_url": environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environ["AWS_SECRET_ACCESS_KEY"],
        "region_name": "us-east-1",
    }


def python(executable: str) -> list[str]:
    """Without byte code written beside what is read."""
    return [executable, "-B"]


if __name__ == "__main__":
    typer.run(main)
