"""Objects as the files of a folder."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from shards.doors.files import open_file, read_file
from shards.stores.patience import Patience
from shards.stores.store import CHUNK_BYTES, MissingObjectError, StoreError

_TEMPORARY_PREFIX = ".incoming-"
# A disk says the same twice; what lies behind a network file system is read once more as well.
_PATIENCE = Patience(looks=2, looks_for_missing=2, first_pause=0.0)


class FolderStore:
    """Objects are the files of one folder, which the first write creates."""

    def __init__(self, folder: Path) -> None:
        """Hold the files of `folder`."""
        self.folder = folder
        self.url = str(folder)
        self.patience = _PATIENCE
        self.faults: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "faults": Counter()}

    def read(self, name: str) -> bytes:
        with self._explained(name):
            return read_file(self.folder / name)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        with self._explained(name), open_file(self.folder / name) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            file.seek(min(offset, size_bytes))
            return file.read(min(length, max(size_bytes - offset, 0)))  # an index may ask for more than memory holds

    def write(self, name: str, data: bytes | Path) -> None:
        with self._explained(name), self._incoming(data) as temporary:
            temporary.replace(self.folder / name)

    def write_if_absent(self, name: str, data: bytes) -> bool:
        with self._explained(name), self._incoming(data) as temporary:
            try:
                os.link(temporary, self.folder / name)  # unlike a rename, a link never replaces
            except FileExistsError:
                return False
        return True

    def exists(self, name: str) -> bool:
        with self._explained(name):
            return (self.folder / name).is_file()

    def list(self) -> tuple[str, ...]:
        with self._explained(""):
            if not self.folder.exists():
                return ()
            entries = [entry.name for entry in os.scandir(self.folder) if entry.is_file()]
        return tuple(sorted(name for name in entries if not name.startswith(_TEMPORARY_PREFIX)))

    def delete(self, name: str) -> None:
        with self._explained(name):
            (self.folder / name).unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        with self._explained(""):
            for path in self.folder.glob(f"{_TEMPORARY_PREFIX}*"):
                path.unlink(missing_ok=True)

    def reconnect(self) -> None:
        """Nothing to do: every read opens the file anew."""

    @contextmanager
    def _incoming(self, data: bytes | Path) -> Iterator[Path]:
        """The content in a file of its own in the folder, on disk; gone at the end unless renamed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{_TEMPORARY_PREFIX}{uuid4().hex}"
        try:
            with temporary.open("xb") as target:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, target, CHUNK_BYTES)
                else:
                    target.write(data)
                target.flush()
                os.fsync(target.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        where = str(self.folder / name)
        try:
            yield
        except FileNotFoundError as error:
            raise MissingObjectError(f"{where}: no such file") from error
        except OSError as error:
            raise StoreError(
                f"{where}: {error.strerror or error}; check the path, its permissions and the disk"
            ) from error
