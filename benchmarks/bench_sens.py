"""Every 25th frame of a ScanNet .sens: packed straight, beside the usual way, exporting it and packing the export.

The file holds real frames (7-Scenes' layout), every one altered to be its own, with colour enlarged to ScanNet's
1296x968 and depth as zlib. The exporter is written after the usual one: the file is read from its beginning to its
end, every depth image is decompressed and written as a PNG (by the decoder and encoder that our packing uses), every
colour image written as it is. Both ways end in the same frames. Each in a fresh process that has imported what it needs
before its clock starts; bytes are those that the process asked the system for (/proc/self/io), without the shards that
it read back to store them.

    python benchmarks/bench_sens.py shared/data/seven_scenes_style/data
"""

from __future__ import annotations

import io
import json
import statistics
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from record import REPOSITORY, record

EVERY = 25
COLOR_SIZE, DEPTH_SIZE = (1296, 968), (640, 480)
WORK = """
import json, resource, struct, sys, time, zlib
from pathlib import Path
what, sens, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
import numpy as np
from shards.images import encode_depth
from shards.packing.pack import pack
from shards.sources.options import SourceOptions
import shards.sources.frame_files, PIL.PngImagePlugin, PIL.JpegImagePlugin

def export():
    data = sens.open("rb")
    version, length = struct.unpack("<IQ", data.read(12))
    data.read(length)
    matrices = np.frombuffer(data.read(256), "<f4").reshape(4, 4, 4)
    *_, num_frames = struct.unpack("<2i4IfQ", data.read(36))
    scene = folder / "scene0000_00"
    for name in ("color", "depth", "pose", "intrinsic"):
        (scene / name).mkdir(parents=True)
    for name, K in (("color", matrices[0]), ("depth", matrices[2])):
        np.savetxt(scene / "intrinsic" / f"intrinsic_{name}.txt", K)
    for place in range(num_frames):
        pose = np.frombuffer(data.read(64), "<f4").reshape(4, 4)
        _, _, color_bytes, depth_bytes = struct.unpack("<4Q", data.read(32))
        (scene / "color" / f"{place}.jpg").write_bytes(data.read(color_bytes))
        depth = np.frombuffer(zlib.decompress(data.read(depth_bytes)), "<u2").reshape(480, 640)
        (scene / "depth" / f"{place}.png").write_bytes(encode_depth(depth))
        np.savetxt(scene / "pose" / f"{place}.txt", pose)
    return scene

def used():
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime

def read_bytes():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])

own, before, began = used(), read_bytes(), time.monotonic()
if what == "straight":
    report = pack("scannet-sens", sens, str(folder / "straight"), every=25)
else:
    report = pack("folder", export(), str(folder / "exported"), every=25, source_options=SourceOptions(1000.0))
print(json.dumps({
    "cpu_seconds": used() - own,
    "read_bytes": read_bytes() - before - report.size_bytes,
    "wall_seconds": time.monotonic() - began,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    "samples": report.num_samples,
}))
"""


def main(
    frames: Annotated[Path, typer.Argument(help="folder of frame-N.color.jpg, .depth.png, .pose.txt")],
    count: Annotated[int, typer.Option(help="frames of the file")] = 1000,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Write a file, pack it both ways in turns, and say how much faster and with how many bytes."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="bench-sens-") as scratch:
        sens = Path(scratch) / "scene0000_00.sens"
        write_sens(frames, sens, count)
        size_bytes = sens.stat().st_size
        for _ in range(repeats):
            for what in ("straight", "exported"):
                with TemporaryDirectory(dir=scratch) as folder:
                    rows.append({"what": what} | run(what, sens, folder))
                    print(rows[-1])

    def median(what: str, name: str) -> float:
        return statistics.median(row[name] for row in rows if row["what"] == what)

    figures = {
        "frames": count,
        "file_mb": round(size_bytes / 1e6, 1),
        "cpu_seconds_straight": median("straight", "cpu_seconds"),
        "cpu_seconds_exported": median("exported", "cpu_seconds"),
        "times_faster": median("exported", "cpu_seconds") / median("straight", "cpu_seconds"),
        "share_of_bytes_read": median("straight", "read_bytes") / size_bytes,
        "cpu_ms_a_frame": 1000 * median("straight", "cpu_seconds") / (count / EVERY),
        "peak_mb": median("straight", "peak_mb"),
    }
    print(json.dumps(record("sens", count, figures, rows, ("numpy", "pillow"))["figures"], indent=1))


def run(what: str, sens: Path, folder: str) -> dict[str, Any]:
    """One way in a process of its own."""
    call = [sys.executable, "-c", WORK, what, str(sens), folder]
    done = subprocess.run(call, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_sens(frames: Path, sens: Path, count: int) -> None:
    """A .sens of real frames: each copy moved by other columns, its depth by a millimetre."""
    names = sorted(path.name.removesuffix(".color.jpg") for path in frames.glob("*.color.jpg"))
    K = np.loadtxt(frames / "camera-intrinsics.txt")
    grown = np.diag([COLOR_SIZE[0] / DEPTH_SIZE[0], COLOR_SIZE[1] / DEPTH_SIZE[1], 1.0]) @ K
    with sens.open("wb") as out:
        out.write(struct.pack("<IQ", 4, 4) + b"test")
        for matrix in (grown, np.eye(3), K, np.eye(3)):
            whole = np.eye(4, dtype="<f4")
            whole[:3, :3] = matrix
            out.write(whole.tobytes())
        out.write(struct.pack("<2i4IfQ", 2, 1, *COLOR_SIZE, *DEPTH_SIZE, 1000.0, count))
        for place in range(count):
            turn, which = divmod(place, len(names))
            color = np.roll(np.asarray(Image.open(frames / f"{names[which]}.color.jpg")), 40 * turn, axis=1)
            buffer = io.BytesIO()
            Image.fromarray(color).resize(COLOR_SIZE).save(buffer, "JPEG", quality=90)
            depth = np.asarray(Image.open(frames / f"{names[which]}.depth.png")).astype(np.uint16)
            depth = np.where((depth > 0) & (depth < 65535), depth + turn, 0).astype("<u2")
            packed = zlib.compress(np.roll(depth, 40 * turn, axis=1).tobytes(), 6)
            pose = np.loadtxt(frames / f"{names[which]}.pose.txt").astype("<f4")
            out.write(pose.tobytes() + struct.pack("<4Q", place, place, buffer.tell(), len(packed)))
            out.write(buffer.getvalue() + packed)
        out.write(struct.pack("<Q", 0))


if __name__ == "__main__":
    typer.run(main)
