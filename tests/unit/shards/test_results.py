"""Results: whole or absent, over nothing that is there, with the mode that any new file has."""

import errno
import os
import stat
from pathlib import Path

import pytest

from shards.errors import CallError, ResultError
from shards.results import check_result, write_result


def write(path, text="new", **options):
    with write_result(path, **options) as partial:
        partial.write_text(text)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_mode_is_the_umasks_whatever_the_writer_made(tmp_path, umask):
    before = os.umask(umask)
    try:
        with write_result(tmp_path / "out.bin") as partial:
            replacement = tmp_path / "replacement"  # as safetensors does
            os.close(os.open(replacement, os.O_CREAT, 0o600))
            replacement.replace(partial)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.bin").stat().st_mode) == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["out.bin"]


def put_file(path):
    path.write_text("old")


def put_link(path):
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("put", [put_file, put_link])
@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_what_is_there_stays_unless_it_is_to_be_written_over(tmp_path, monkeypatch, put, links):
    def refuse(source, destination):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "out.txt"
    put(path)
    for attempt in (check_result, write):
        with pytest.raises(CallError, match=r"out\.txt: exists already; name another file, or .* --force"):
            attempt(path)
    assert path.is_symlink() == (put is put_link)
    write(path, force=True)
    assert path.read_text() == "new"
    assert not path.is_symlink()
    path.unlink()
    with pytest.raises(CallError, match="exists already"), write_result(path):
        put(path)  # meanwhile
    assert path.is_symlink() or path.read_text() == "old"
    path.unlink()
    write(path)
    assert [path.name for path in tmp_path.iterdir()] == ["out.txt"]


def test_a_failed_writer_leaves_nothing(tmp_path):
    path = tmp_path / "out.txt"
    with pytest.raises(ZeroDivisionError), write_result(path):
        raise ZeroDivisionError
    with (
        pytest.raises(ResultError, match=r"out\.txt: cannot be written \(.*No space left.*make room, or name another"),
        write_result(path),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
    asked = Path("/proc/out.txt")  # where the kernel takes no file
    with pytest.raises(ResultError, match=r"^/proc/out\.txt: cannot be written \([^.]*'/proc/out\.txt'\); make room"):
        write(asked)


def test_a_place_for_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "gone" / "out.txt"):
        with pytest.raises(CallError, match="wanted the path of a file in a folder that exists"):
            write(path)
