"""What a launch writes and reads is a file of its own, whatever somebody put in its place."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from launch.errors import LaunchError
from launch.processes.own_files import FLAGS, open_own
from launch.processes.private_folder import RAY, private_folder


@pytest.mark.parametrize("mode", FLAGS)
def test_links_pipes_and_devices_are_refused_and_nobody_waits(tmp_path: Path, mode) -> None:
    secret = tmp_path / "secret"
    secret.write_text("TOP-SECRET")
    (tmp_path / "link").symlink_to(secret)
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link", tmp_path / "dangling", tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(OSError, match=r"symbolic links|no regular file|No such device"):
            open_own(path, mode)
    assert secret.read_text() == "TOP-SECRET"
    assert not (tmp_path / "made").exists()


def test_a_file_is_added_to_read_and_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text in (b"one ", b"two"):
        with open_own(path, "ab") as file:
            file.write(text)
    with open_own(path, "rb") as file:
        assert file.read() == b"one two"
    open_own(path, "wb").close()
    assert path.read_bytes() == b""


def test_rays_sockets_fit_below_a_private_folder_wherever_temporary_files_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = "session_2026-11-30_11-13-50_489061_4194304/sockets/plasma_store"
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as short:
        parents = [Path(short), *(Path(short) / ("x" * length) for length in (1, 2, 5, 10, 11, 12, 13, 14, 15, 50))]
        for parent in parents:
            parent.mkdir(exist_ok=True)
            monkeypatch.setattr(tempfile, "tempdir", str(parent))
            with private_folder() as folder:
                assert len(str(folder / RAY / session)) <= 107
                assert folder.stat().st_mode & 0o777 == 0o700
                assert folder.parent in (parent, Path("/tmp"))


def test_a_folder_where_everybody_may_rename_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(short))
        short.chmod(0o777)
        with (
            pytest.raises(LaunchError, match=rf"{short}: every user .* \(its mode is 777,.*chmod \+t {short}"),
            private_folder(),
        ):
            pass
        short.chmod(0o1777)
        with private_folder() as folder:
            assert folder.parent == short
    finally:
        short.rmdir()
