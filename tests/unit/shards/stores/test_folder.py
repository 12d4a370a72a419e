"""A folder whose files are not all files: nothing is waited for, nothing without an end is read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.stores.folder import FolderStore
from shards.stores.store import StoreError


def _link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [os.mkfifo, _link_to_device, Path.mkdir], ids=["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_by_name(tmp_path: Path, put: Callable[[Path], None]) -> None:
    put(tmp_path / "manifest.json")
    store = FolderStore(tmp_path)
    for read in (store.read, lambda name: store.read_range(name, 0, 4)):
        with pytest.raises(StoreError, match=r"manifest\.json: no file but a pipe, device or folder"):
            read("manifest.json")


def test_a_linked_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"0123")
    (tmp_path / "shard").symlink_to("elsewhere")
    store = FolderStore(tmp_path)
    assert store.read("shard") == b"0123"
    assert store.read_range("shard", 2, 10) == b"23"
