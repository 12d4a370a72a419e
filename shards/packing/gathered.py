"""The objects that make shards a dataset, put together from the pieces of its shards."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from shards.manifest import INDEX_NAME, Manifest
from shards.packing.piece import ShardPiece
from shards.table import ShardRow, ShardTable


class GatheredIndex:
    """Takes the pieces of shards in order; what grows with the samples goes to files, not to memory.

    Attributes:
        rows: of the shard table, so far.
    """

    def __init__(self, scratch: Path) -> None:
        """Write into the folder `scratch`."""
        self.rows: list[ShardRow] = []
        self._path, self._keys_path = scratch / INDEX_NAME, scratch / "keys"
        self._path.write_bytes(b"")
        self._keys_path.write_bytes(b"")
        self._sha256 = hashlib.sha256()
        self._voxels: list[bytes] = []

    @property
    def num_samples(self) -> int:
        """Samples of all pieces so far."""
        return sum(row.num_samples for row in self.rows)

    def add(self, piece: ShardPiece) -> None:
        """Take the piece of the next shard."""
        for path, data in ((self._path, piece.rows), (self._keys_path, piece.keys)):
            with path.open("ab") as file:
                file.write(data)
        self._sha256.update(piece.rows)
        self._voxels.append(piece.voxels)
        self.rows.append(piece.table_row)

    def finish(self, blank: Manifest) -> tuple[Manifest, bytes, Path, bytes | None]:
        """The manifest and what it vouches for.

        Args:
            blank: a manifest that says all but counts and hashes.

        Returns:
            manifest, shards.bin, a file with index.bin, and voxels.bin where every frame was counted.
        """
        table = ShardTable.from_rows(self.rows).encode()
        with self._path.open("ab") as index:
            with self._keys_path.open("rb") as keys:
                shutil.copyfileobj(keys, index)
            index_bytes = index.tell()
        with self._keys_path.open("rb") as keys:
            while block := keys.read(1 << 20):
                self._sha256.update(block)
        counts = b"".join(self._voxels)
        voxels = counts if np.frombuffer(counts, "<u2").all() else None
        manifest = replace(
            blank,
            num_samples=self.num_samples,
            num_shards=len(self.rows),
            size_bytes=sum(row.size_bytes for row in self.rows),
            shards_sha256=hashlib.sha256(table).hexdigest(),
            index_sha256=self._sha256.hexdigest(),
            index_bytes=index_bytes,
            voxels_sha256=None if voxels is None else hashlib.sha256(voxels).hexdigest(),
        )
        return manifest, table, self._path, voxels
