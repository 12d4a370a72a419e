"""Datasets whose checksums are right and whose content means harm: each must be refused in words."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from made_dataset import blank_manifest, write_slices

from shards.images import pack_depth
from shards.manifest import MANIFEST_NAME, TABLE_NAME, SampleKind, shard_name
from shards.rows import DEPTH_IS_ZST, ROW
from shards.slices import archive_end, sample_slice

Members = dict[str, bytes]
Samples = Sequence[tuple[str, Members]]
PWNED = "PWNED"  # the file that a pickle would make


def write_dataset(
    folder: Path,
    slices: Sequence[tuple[str, bytes]],
    kind: SampleKind = "frames",
    edit_manifest: Callable[[bytes], bytes] = bytes,
    edit_index: Callable[[bytes], bytes] = bytes,
) -> None:
    """One shard of these samples, format 1; indexes, table and manifest vouch for whatever they hold."""
    folder.mkdir(parents=True)
    data = b"".join(content for _, content in slices)
    tar = data + archive_end(len(data))
    ends = np.cumsum([len(content) for _, content in slices]).tolist()
    lines = [
        b"%s\t%d\t%d\t%08x\n" % (key.encode(), end - len(content), len(content), google_crc32c.value(content))
        for (key, content), end in zip(slices, ends, strict=True)
    ]
    body = edit_index(b"".join(lines))
    table = struct.pack("<QQ", len(slices), len(tar)) + hashlib.sha256(tar).digest()
    manifest = {
        "format_version": 1,
        "num_samples": len(slices),
        "num_shards": 1,
        "size_bytes": len(tar),
        "label_names": [],
        "provenance": {"source_format": "x"},
        "shards_sha256": hashlib.sha256(table).hexdigest(),
        "sample_kind": kind,
    }
    (folder / shard_name(0)).write_bytes(tar)
    (folder / "shard-000000.idx").write_bytes(body + b"#crc32c\t%08x\n" % google_crc32c.value(body))
    (folder / TABLE_NAME).write_bytes(table)
    (folder / MANIFEST_NAME).write_bytes(edit_manifest(json.dumps(manifest, indent=1).encode()))


def png(width: int, height: int, bits: int, kind: int) -> bytes:
    """A PNG of zeros that is small however large it says that it is; it holds a hundredth of its rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = 1 + width * {0: 1, 2: 3}[kind] * bits // 8
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    pixels = zlib.compress(bytes(row * max(height // 100, 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Pickled:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {PWNED}",)


def npz(arrays: Mapping[str, np.ndarray | bytes]) -> bytes:
    """An archive of arrays, or of the raw bytes of their files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            if isinstance(array, bytes):
                content.write(array)
            else:
                np.lib.format.write_array(content, array, allow_pickle=True)
            archive.writestr(f"{name}.npy", content.getvalue())
    return buffer.getvalue()


def npy_header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def with_size(archive: bytes, claimed: int) -> bytes:
    """The archive with another uncompressed size of its first file, in its directory."""
    at = archive.index(b"PK\x01\x02") + 24
    return archive[:at] + struct.pack("<I", claimed) + archive[at + 4 :]


def _header(slice_: bytes, name: bytes | None = None, size: bytes | None = None) -> bytes:
    """A sample whose first tar header says another name or size, with its checksum."""
    header = bytearray(slice_[:512])
    if name is not None:
        header[:100] = name.ljust(100, b"\0")
    if size is not None:
        header[124:136] = size.ljust(12, b"\0")
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    return bytes(header) + slice_[512:]


def write_all(folder: Path, samples: Samples) -> list[str]:
    """Every hostile dataset, in a folder of its name; the first of the good frames `samples` is what is spoilt."""
    key, members = samples[0]
    meta = json.loads(members["meta.json"])
    rest = [(other, sample_slice(other, content)) for other, content in samples[1:]]
    good = sample_slice(key, members)
    without_color = {name: data for name, data in members.items() if not name.startswith("color")}

    def spoilt(**changes: bytes) -> Members:
        return {**members, **{name.replace("_", "."): data for name, data in changes.items()}}

    def meta_with(**changes: Any) -> Members:
        return spoilt(meta_json=json.dumps({**meta, **changes}).encode())

    def meta_text(old: str, new: str) -> Members:
        return spoilt(meta_json=json.dumps(meta).replace(old, new).encode())

    scale = f'"depth_scale": {meta["depth_scale"]}'
    frames: dict[str, Members] = {
        "color_bomb_50000": {**without_color, "color.png": png(50_000, 50_000, 8, 0)},
        "color_bomb_13000": {**without_color, "color.png": png(13_000, 13_000, 8, 2)},
        "color_of_another_size": {**without_color, "color.png": png(7_000, 7_000, 8, 2)},
        "depth_bomb": spoilt(depth_png=png(13_000, 13_000, 16, 0)),
        "depth_of_another_size": spoilt(depth_png=png(7_000, 7_000, 16, 0)),
        "labels_of_another_size": spoilt(semantic_png=png(7_000, 7_000, 8, 0)),
        "color_is_postscript": spoilt(color_jpg=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "meta_deep": spoilt(meta_json=b'{"format_version":1,"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        "meta_gigantic": spoilt(meta_json=b'{"format_version":1,"x":[' + b"1," * 4_000_000 + b"1]}"),
        "meta_not_utf8": spoilt(meta_json=b'{"format_version": "\xff"}'),
        "meta_surrogate": meta_text(f'"{meta["scene_id"]}"', '"\\ud800"'),
        "meta_list": spoilt(meta_json=b"[1]"),
        "meta_scene_with_escapes": meta_with(scene_id="a\x1b[2J\x1b]0;OWNED\x07"),
        "depth_scale_zero": meta_with(depth_scale=0),
        "depth_scale_tiny": meta_with(depth_scale=1e-30),
        "depth_scale_infinite": meta_text(scale, '"depth_scale": Infinity'),
        "depth_scale_overflows": meta_text(scale, '"depth_scale": 1' + "0" * 400),
        "depth_scale_1e999": meta_text(scale, '"depth_scale": 1e999'),
        "pose_of_nan": spoilt(meta_json=json.dumps({**meta, "world_from_camera": [[float("nan")] * 4] * 4}).encode()),
        "pose_of_texts": meta_with(world_from_camera=[["nan"] * 4] * 4),
        "pose_of_zeros": meta_with(world_from_camera=[[0.0] * 4] * 4),
        "K_of_nan": spoilt(meta_json=json.dumps({**meta, "K_color": [[float("nan")] * 3] * 3}).encode()),
        "K_huge": meta_with(K_depth=[[1e-30, 0, 0], [0, 1e-30, 0], [0, 0, 1]]),
        "boxes_deep": spoilt(boxes_json=b"[" * 100_000),
    }
    for name, content in frames.items():
        write_dataset(folder / name, [(key, sample_slice(key, content)), *rest])

    def number(old: str, new: str) -> Callable[[bytes], bytes]:
        return lambda data: data.replace(f'"{old}": '.encode(), f'"{old}": {new}, "was": '.encode())

    manifests: dict[str, Callable[[bytes], bytes]] = {
        "manifest_deep": lambda data: b"[" * 200_000,
        "manifest_1e999": number("num_samples", "1e999"),
        "manifest_huge_number": number("num_samples", "9" * 4000),
        "manifest_huge_shards": number("num_shards", "1000000000000"),
        "manifest_negative": number("num_samples", "-4"),
        "manifest_no_samples": number("num_samples", "0"),
        "manifest_nan": number("size_bytes", "NaN"),
        "manifest_is_text": lambda data: b'"manifest"',
        "manifest_escapes": number("format_version", '"\\u001b[31mRED"'),
    }
    for name, edit in manifests.items():
        write_dataset(folder / name, [(key, good), *rest], edit_manifest=edit)

    def first_line(column: int, value: bytes) -> Callable[[bytes], bytes]:
        def edit(body: bytes) -> bytes:
            first, *others = body.splitlines(keepends=True)
            fields = first.rstrip(b"\n").split(b"\t")
            fields[column] = value
            return b"\t".join(fields) + b"\n" + b"".join(others)

        return edit

    indexes = {
        "index_huge_offset": first_line(1, b"9" * 30),
        "index_huge_length": first_line(2, b"9" * 18),
        "index_negative_length": first_line(2, b"-512"),
        "index_negative_crc": first_line(3, b"-1"),
        "index_key_with_escapes": first_line(0, b"room\x1b[31mRED\x1b]0;OWNED\x07/0000"),
        "index_key_climbs": first_line(0, b"../../etc"),
        "index_of_nothing": lambda body: b"",
    }
    for name, edit in indexes.items():
        write_dataset(folder / name, [(key, good), *rest], edit_index=edit)

    name_of_first = f"{key}.color.jpg".encode()
    headers = {
        "tar_climbs": _header(good, b"../../../../../evil.color.jpg"),
        "tar_absolute": _header(good, b"/etc/evil.color.jpg"),
        "tar_escapes": _header(good, b"a\x1b]0;OWNED\x07.color.jpg"),
        "tar_huge_size": _header(good, name_of_first, b"77777777777"),
        "tar_negative_size": _header(good, name_of_first, b"-0000001000"),
        "tar_no_size": _header(good, name_of_first, b"_"),
    }
    for name, content in headers.items():
        write_dataset(folder / name, [(key, content), *rest])

    rgb, xyz = np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.float32)
    scene_meta = json.dumps({"format_version": 1, "dataset": "x", "scene_id": "room-x"}).encode()
    bomb = npz({"xyz": npy_header((10_000_000, 3)) + bytes(120_000_000), "rgb": rgb})
    archives = {
        "npz_pickle": npz({"xyz": np.array([Pickled()], dtype=object), "rgb": rgb}),
        "npz_bomb": with_size(bomb, 3_000_000_000),
        "npz_lying_shape": npz({"xyz": npy_header((10**11, 3)), "rgb": rgb}),
        "npz_negative_shape": npz({"xyz": npy_header((-1, -3)) + bytes(12), "rgb": rgb}),
        "npz_lying_size": with_size(npz({"xyz": xyz, "rgb": rgb}), 400_000_000),
        "npz_longer_than_shape": npz({"xyz": npy_header((2, 3)) + bytes(100_000), "rgb": rgb}),
        "npz_long_header": npz({"xyz": b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**8) + b" " * 10**6, "rgb": rgb}),
        "npz_other_rows": npz({"xyz": xyz, "rgb": np.zeros((3, 3), np.uint8)}),
        "npz_scalar": npz({"xyz": np.float32(1), "rgb": rgb}),
        "npz_unknown_array": npz({"xyz": xyz, "rgb": rgb, "\x1b[31mred": xyz}),
        "npz_many_files": npz({f"a{number}": b"" for number in range(3000)}),
    }
    whole = "room-x/whole"
    for name, data in archives.items():
        content = sample_slice(whole, {"points.npz": data, "meta.json": scene_meta})
        write_dataset(folder / name, [(whole, content)], kind="scenes")
    _write_rows(folder, samples)
    return sorted(path.name for path in folder.iterdir())


def _write_rows(folder: Path, samples: Samples) -> None:
    """Datasets of format 2 whose rows say what is not so; every row has its checksum."""
    slices = [(key, sample_slice(key, members)) for key, members in samples]
    scratch = folder.parent / "scratch"
    blank = blank_manifest(dataset="seven-scenes")

    def with_column(name: str, value: Any) -> Callable[[bytes], bytes]:
        def edit(row: bytes) -> bytes:
            rows = np.frombuffer(bytearray(row), ROW)
            rows[name] = value
            return rows.tobytes()

        return edit

    def claims_zst(row: bytes) -> bytes:
        rows = np.frombuffer(bytearray(row), ROW)
        rows["flags"] |= DEPTH_IS_ZST
        rows["depth_size"] = 64, 48
        return rows.tobytes()

    rows: dict[str, Callable[[bytes], bytes]] = {
        "row_depth_scale_zero": with_column("depth_scale", 0.0),
        "row_depth_scale_nan": with_column("depth_scale", np.nan),
        "row_pose_of_nan": with_column("world_from_camera", np.nan),
        "row_pose_of_zeros": with_column("world_from_camera", 0.0),
        "row_color_from_depth_huge": with_column("color_from_depth", 1e300),
        "row_K_of_nan": with_column("K_color", np.nan),
        "row_K_huge": with_column("K_depth", 1e-30),
        "row_timestamp_nan": with_column("timestamp", np.nan),
        "row_member_climbs_out": with_column("member_offset", (1 << 32) - 1),
        "row_member_too_long": with_column("member_size", (1 << 32) - 1),
        "row_member_absent": with_column("member_offset", 0),
        "row_of_no_dataset": with_column("dataset", 7),
        "row_length": with_column("length", 1 << 30),
        "row_depth_is_no_zst": claims_zst,
    }
    for name, edit in rows.items():
        write_slices(folder / name, slices, scratch, blank, edit_row=edit)

    key, members = samples[0]
    meta = json.loads(members["meta.json"])
    for name, size in (("zst_bomb", (13_000, 13_000)), ("zst_of_another_size", (7_000, 7_000))):
        depth = pack_depth(np.zeros(size[::-1], np.uint16))
        packed = {
            **{name: data for name, data in members.items() if name != "depth.png"},
            "depth.zst": depth,
            "meta.json": json.dumps({**meta, "depth_size": size}).encode(),
        }
        write_slices(folder / name, [(key, sample_slice(key, packed)), *slices[1:]], scratch, blank)
    climbs = _header(slices[0][1], b"../../../../../evil.color.jpg")
    write_slices(folder / "row_key_climbs", [(key, climbs), *slices[1:]], scratch, blank)
