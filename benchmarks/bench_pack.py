"""Packing and verifying, CPU seconds a frame, beside webdataset's ShardWriter with a sha256 of what it wrote.

Frames are real ones (7-Scenes' layout: JPEG and 16-bit PNG), every one altered to be its own, in page cache. The
contenders take turns, each in a fresh process that has imported what it needs before the clock starts:

shard_writer     webdataset.ShardWriter of the same bytes and as many of meta.json, and a sha256 of its tars
pack             t4p shards pack: headers and checksums, index and hashes
pack_full        the same with --check full: every image decoded, voxels counted
pack_zstd        the same with --depth-codec zstd: depth encoded anew
verify           of what pack made: everything decoded, webdataset's reader as a witness
verify_zstd      of what pack_zstd made
"""

from __future__ import annotations

import json
import statistics
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from record import record

CONTENDERS = ("shard_writer", "pack", "pack_full", "pack_zstd", "verify", "verify_zstd")
WORK = """
import hashlib, io, json, sys, time
from pathlib import Path
what, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
from shards.packing.pack import pack
from shards.verify import verify
import shards.slices, webdataset, PIL.PngImagePlugin, PIL.JpegImagePlugin
cap = 16 << 20

def shard_writer():
    (folder / what).mkdir()
    meta = b" " * 900
    tars = f"{folder / what}/%06d.tar"
    with webdataset.ShardWriter(tars, maxcount=10**9, maxsize=cap, encoder=False, verbose=0) as w:
        for path in sorted(source.glob("*.depth.png")):
            name = path.name.removesuffix(".depth.png")
            color = (source / f"{name}.color.jpg").read_bytes()
            w.write({"__key__": f"scene/{name}", "color.jpg": color, "depth.png": path.read_bytes(), "meta.json": meta})
    for tar in (folder / what).glob("*.tar"):
        hashlib.sha256(tar.read_bytes()).hexdigest()

def packed(**options):
    pack("seven-scenes", source, str(folder / what), shard_size_bytes=cap, **options)

def verified(name):
    assert not verify(str(folder / name)).problems

run = {
    "shard_writer": shard_writer,
    "pack": packed,
    "pack_full": lambda: packed(check="full"),
    "pack_zstd": lambda: packed(depth_codec="zstd"),
    "verify": lambda: verified("pack"),
    "verify_zstd": lambda: verified("pack_zstd"),
}[what]
start, wall = time.process_time(), time.perf_counter()
run()
print(json.dumps({"cpu": time.process_time() - start, "wall": time.perf_counter() - wall}))
"""


def main(
    frames: Annotated[Path, typer.Argument(help="a folder of 7-Scenes frames: *.color.jpg, *.depth.png, *.pose.txt")],
    count: Annotated[int, typer.Option(min=1, help="frames to pack")] = 600,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Time them in turns; figures are CPU milliseconds a frame, medians."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as name:
        source = copy_frames(frames, Path(name) / "kitchen", count)
        for repeat in range(repeats):
            with TemporaryDirectory() as folder:
                for contender in CONTENDERS:
                    done = subprocess.run(
                        [sys.executable, "-c", WORK, contender, str(source), folder],
                        capture_output=True,
                        text=True,
                        check=True,
                    )
                    rows.append({"contender": contender, "repeat": repeat, **json.loads(done.stdout)})
    figures: dict[str, Any] = {"frames": count}
    for contender in CONTENDERS:
        seconds = [row["cpu"] for row in rows if row["contender"] == contender]
        figures[f"{contender}_ms"] = 1000 * statistics.median(seconds) / count
    times = {(row["contender"], row["repeat"]): row["cpu"] for row in rows}
    figures["pack_ratio"] = statistics.median(
        times["pack", repeat] / times["shard_writer", repeat] for repeat in range(repeats)
    )
    report = record("pack", repeats, figures, rows, ("webdataset", "numpy", "pillow", "zstandard", "simplejpeg"))
    if as_json:
        typer.echo(json.dumps(report))
        return
    for contender in CONTENDERS:
        typer.echo(f"{contender:14} {figures[f'{contender}_ms']:6.2f} CPU ms a frame")
    typer.echo(f"pack takes {figures['pack_ratio']:.2f} times the CPU of ShardWriter and a sha256")


def copy_frames(frames: Path, folder: Path, count: int) -> Path:
    """So many frames of their own: the real ones over and over, each with a comment of its own in its images."""
    folder.mkdir()
    found = sorted(frames.rglob("*.depth.png"))
    for number in range(count):
        depth = found[number % len(found)]
        stem, note = depth.name.removesuffix(".depth.png"), b"%08d" % number
        color = (depth.parent / f"{stem}.color.jpg").read_bytes()
        out = folder / f"frame-{number:06d}"
        out.with_suffix(".color.jpg").write_bytes(color[:2] + b"\xff\xfe\x00\x0a" + note + color[2:])
        out.with_suffix(".depth.png").write_bytes(with_comment(depth.read_bytes(), note))
        pose = depth.parent / f"{stem}.pose.txt"
        if pose.exists():
            out.with_suffix(".pose.txt").write_bytes(pose.read_bytes())
    return folder


def with_comment(png: bytes, note: bytes) -> bytes:
    """A PNG with one more chunk of text before its end."""
    content = b"tEXtnote\0" + note
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:-12] + chunk + png[-12:]


if __name__ == "__main__":
    typer.run(main)
