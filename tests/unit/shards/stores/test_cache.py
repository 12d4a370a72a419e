"""The node's cache: whole entries or none, one user's, within its limit, whoever else uses it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shards.errors import CallError
from shards.stores.cache import NodeCache, entry_name, open_cache
from shards.stores.room import allowed_bytes

NAMES = [entry_name(b"tar", i, i + 1) for i in range(4)]


def put(cache: NodeCache, name: str, data: bytes, used: float = 0.0) -> None:
    incoming = cache.begin(name, b"rows", len(data))
    incoming.write([data[5:]], 5)
    assert cache.get(name) is None  # whole or not at all
    incoming.write([data[:2], data[2:5]], 0)
    incoming.finish()
    if used:
        os.utime(cache.folder / name, (used, used))


def test_an_entry_is_read_back_in_pieces_also_after_it_went(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", None, print)
    put(cache, NAMES[0], b"0123456789")
    entry = cache.get(NAMES[0])
    assert entry is not None
    cache.discard(NAMES[0])
    assert (entry.rows, entry.read(3, 4), entry.read(8, 100)) == (b"rows", b"3456", b"89")
    entry.close()
    assert cache.get(NAMES[0]) is None
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert len(set(NAMES) | {entry_name(b"other", 0, 1), entry_name(b"tar", 0, 2)}) == 6


def test_what_was_not_used_for_longest_goes_and_what_is_needed_stays(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 1000)
    for age, name in enumerate(NAMES):
        put(cache, name, bytes(200), used=1000.0 + age)
    each = cache.used_bytes() // 4
    cache.touch(NAMES[0])
    assert cache.make_room(1000 - 2 * each, {NAMES[1]}) == 2 * each
    assert [cache.touch(name) for name in NAMES] == [True, True, False, False]
    assert cache.make_room(1000, set(NAMES)) == 2 * each  # all are needed: nothing goes


@pytest.mark.parametrize("data", [b"", b"t4pcach1", b"no entry at all" * 10, b"t4pcach1" + b"\xff" * 8 + bytes(50)])
def test_a_file_that_is_no_entry_goes(tmp_path: Path, data: bytes) -> None:
    cache = NodeCache(tmp_path, 1000)
    (tmp_path / NAMES[0]).write_bytes(data)
    assert cache.get(NAMES[0]) is None
    assert not (tmp_path / NAMES[0]).exists()


def test_a_writer_that_is_killed_leaves_no_entry_and_what_it_left_is_swept(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from shards.stores.cache import NodeCache\n"
        "NodeCache(pathlib.Path(sys.argv[1]), 1000).begin(sys.argv[2], b'rows', 100).write([b'half'], 0)\n"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path), NAMES[0]]).returncode == -9
    cache = NodeCache(tmp_path, 1000)
    (left,) = tmp_path.iterdir()
    assert cache.get(NAMES[0]) is None
    cache.sweep()
    assert left.exists()  # its writer may be slow
    os.utime(left, (time.time() - 3600,) * 2)
    cache.sweep()
    assert not left.exists()


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "file").touch()
    for name, words in (("open", "mode 0700"), ("link", "no link"), ("file", "is no folder")):
        with pytest.raises(CallError, match=words):
            open_cache(tmp_path / name, None, print)


def test_more_than_is_allowed_is_cut_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    cache = open_cache(tmp_path / "cache", 1 << 60, said.append)
    assert cache.limit_bytes == pytest.approx(allowed_bytes(tmp_path), rel=0.1)
    assert len(said) == 1
    assert "more than half" in said[0]


@pytest.mark.parametrize(
    ("cgroup", "files", "limit"),
    [
        ("0::/job/rank\n", {"job/rank/memory.max": "max\n", "job/memory.max": "4000\n"}, 4000),
        ("0::/host/path\n", {"memory.max": "3000\n"}, 3000),  # as a container sees it
        ("5:cpu:/x\n4:memory:/docker/1\n", {"memory/docker/1/memory.limit_in_bytes": "2000\n"}, 2000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),  # version 1 for none
    ],
)
def test_in_memory_the_limits_of_memory_count(
    tmp_path: Path, cgroup: str, files: dict[str, str], limit: int | None
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    for name, text in {
        "proc/self/mounts": f"/dev/x / ext4 rw 0 0\ntmpfs {folder} tmpfs rw 0 0\n",
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert (allowed_bytes(folder, tmp_path) == limit // 2) if limit else allowed_bytes(folder, tmp_path) > 1 << 20
    assert allowed_bytes(tmp_path, tmp_path) > 1 << 20  # on disk memory does not count
