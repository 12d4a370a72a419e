"""That samples of object storage are read ahead into a cache of the node, while a loop over them lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from shards.stores.cache import RUNS, NodeCache, open_cache
from t4p.data.board import Board
from t4p.data.fetch import Catalogue
from t4p.data.fetcher import FetchJob
from t4p.data.fetcher_process import FetcherProcess
from t4p.data.needs import Needs
from t4p.data.ranks import Nodes
from t4p.data.shelf import Shelf

_FEW_BYTES = 64 << 20  # of a cache: some blocks of 8 MiB


@dataclass(frozen=True)
class ReadAhead:
    """That samples are read ahead.

    Attributes:
        cache: where to, on this node.
        run: a name of the run that no other on this node has, the same on all of its ranks.
    """

    cache: NodeCache
    run: str


def plan_read_ahead(
    catalogue: Catalogue, cache_dir: str | None, cache_bytes: int | None, run: str, say: Callable[[str], None]
) -> ReadAhead | None:
    """Where a node keeps what it reads ahead; None where nothing lies in object storage, or nothing is to be kept.

    Args:
        cache_dir, cache_bytes: as data.cache_dir and data.cache_bytes.
        run: as in `ReadAhead`.
        say: told where the cache is, or how large, other than expected.

    Raises:
        CallError, StoreError: the folder cannot serve as a cache.
    """
    if not catalogue.remote_stores or cache_bytes == 0:
        return None
    cache = open_cache(None if cache_dir is None else Path(cache_dir).expanduser(), cache_bytes, say)
    if cache.limit_bytes < min(_FEW_BYTES, int(catalogue.bytes_per_shard.sum())):
        say(
            f"{cache.folder}: {cache.limit_bytes} bytes of samples may be kept there, too few to read ahead: what does "
            "not fit is read sample by sample; free some space, or give another data.cache_dir or data.cache_bytes"
        )
    return ReadAhead(cache, run)


@contextmanager
def shelf_of(
    read_ahead: ReadAhead | None, catalogue: Catalogue, needs: Needs, nodes: Nodes, rank: int, loop: str
) -> Iterator[Shelf | None]:
    """Where the loaders of a rank find what is read ahead; its node's first rank has it read meanwhile.

    Args:
        needs: of the rank's node.
        loop: a name of the loop within the run, the same on all ranks.

    Yields:
        None where nothing is read ahead.
    """
    if read_ahead is None or not catalogue.remote_stores:
        yield None
        return
    node, beside = nodes.of_rank[rank], nodes.beside(rank)
    board = Board(read_ahead.cache.folder / RUNS / f"{read_ahead.run}-{node}-{loop}.board", len(beside))
    job = FetchJob(catalogue, needs, read_ahead.cache, board)
    with FetcherProcess(job) if rank == beside[0] else nullcontext():
        yield Shelf(read_ahead.cache, board)
