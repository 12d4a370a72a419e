"""The logits of the contrastive loss: how they are spread over ranks, and tiles without pairs and duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Rows and columns of a tile.
ROW_CHUNK, COLUMN_CHUNK = 1024, 4096


@dataclass(frozen=True)
class Layout:
    """How the matrix of logits is spread over ranks and cut into tiles.

    Columns are numbered as all_gather_rows lays them out: rank r's start at r * max(counts), padding included. No tile
    holds columns of two ranks, so no tile holds padding.

    Attributes:
        num_pairs: num pairs of each rank.
        counts: pixels of each rank, its columns.
        num_rows: points of this rank.
    """

    num_pairs: tuple[int, ...]
    counts: tuple[int, ...]
    rank: int
    num_rows: int
    row_chunk: int
    column_chunk: int
    pixel_gradient: bool

    @property
    def num_columns(self) -> int:
        return len(self.counts) * max(self.counts)

    @property
    def own_columns(self) -> slice:
        start = self.rank * max(self.counts)
        return slice(start, start + self.counts[self.rank])

    @property
    def weight(self) -> float:
        """Weight of one local pair in this rank's loss; halved because rows and columns each count half."""
        return 0.5 * len(self.num_pairs) / max(sum(self.num_pairs), 1)

    def own_start(self, columns: slice) -> int | None:
        """Which of this rank's pixels the first of these columns is; None for another rank's columns."""
        start = columns.start - self.rank * max(self.counts)
        return start if 0 <= start < self.counts[self.rank] else None

    def row_slices(self) -> Iterator[slice]:
        return _slices(0, self.num_rows, self.row_chunk)

    def column_slices(self) -> Iterator[slice]:
        longest = max(self.counts)
        for r, count in enumerate(self.counts):
            yield from _slices(r * longest, r * longest + count, self.column_chunk)


@dataclass(frozen=True, eq=False)
class Pairs:
    """This rank's pairs, each once, tile by tile.

    Attributes:
        point, pixel: (P,) rows of this rank's points and pixels.
        counts: (P,) float64, how often each is there.
        first: by tile, those of a chunk of rows after those of the chunk before: its first pair; at the end P.
        chunks: rows and columns of a tile, tiles side by side.
    """

    point: Tensor
    pixel: Tensor
    counts: Tensor
    first: list[int]
    chunks: tuple[int, int, int]

    def of_tile(self, point: int, pixel: int) -> slice:
        """The pairs of the tile that begins with this point and this pixel."""
        rows, columns, across = self.chunks
        tile = (point // rows) * across + pixel // columns
        return slice(*self.first[tile : tile + 2])


def sort_pairs(pairs: Tensor, layout: Layout) -> Pairs:
    """(2, P) rows of this rank's points and pixels, in which a pair may be twice."""
    num_pixels = layout.counts[layout.rank]
    codes, counts = torch.unique(pairs[0] * num_pixels + pairs[1], return_counts=True)
    point, pixel = codes // max(num_pixels, 1), codes % max(num_pixels, 1)
    across = -(-num_pixels // layout.column_chunk)
    down = -(-layout.num_rows // layout.row_chunk)
    tile = (point // layout.row_chunk) * across + pixel // layout.column_chunk
    if across > 1:
        tile, order = torch.sort(tile, stable=True)
        point, pixel, counts = point[order], pixel[order], counts[order]
    first = torch.searchsorted(tile, torch.arange(down * across + 1, device=tile.device)).tolist()
    return Pairs(point, pixel, counts.double(), first, (layout.row_chunk, layout.column_chunk, across))


class Duplicates:
    """Which combinations of this rank's rows are no negatives, where rows have ids."""

    def __init__(self, ids: tuple[Tensor, Tensor], layout: Layout) -> None:
        self._ids = ids
        self._layout = layout
        # Per chunk of rows and of own columns, the span of the ids: tiles whose spans are apart need no comparison.
        self._row_spans = [_spans(of_pairs, layout.row_chunk) for of_pairs in ids]
        self._column_spans = [_spans(of_pairs, layout.column_chunk) for of_pairs in ids]

    def fill_(self, logits: Tensor, value: float, rows: slice, others: slice) -> None:
        """Write `value` where rows and columns share a point or a pixel; `others` are the columns' own rows."""
        mask: Tensor | None = None
        for ids, row_spans, column_spans in zip(self._ids, self._row_spans, self._column_spans, strict=True):
            row_low, row_high = row_spans[rows.start // self._layout.row_chunk]
            column_low, column_high = column_spans[others.start // self._layout.column_chunk]
            if row_low <= column_high and column_low <= row_high:
                equal = ids[rows, None] == ids[None, others]
                mask = equal if mask is None else mask.logical_or_(equal)
        if mask is not None:
            logits.masked_fill_(mask, value)


class Tile(NamedTuple):
    """Logits of some rows with some columns, where pairs and duplicates hold the lowest finite number.

    Not -inf: the running maximum of a column may meet nothing else at first, and -inf - -inf is nan.
    """

    columns: slice
    logits: Tensor  # (rows, columns)
    scratch: Tensor  # of the same shape, uninitialised
    pairs: slice  # which of this rank's pairs lie in the tile
    places: Tensor  # where, in the flattened tile
    pair_logits: Tensor  # what was there


class Tiles:
    """The logits of this rank's rows, one tile at a time, in two buffers that every tile reuses.

    The buffers bound the memory: fresh tensors would keep the last tile alive while the next one is made.
    """

    def __init__(
        self,
        layout: Layout,
        points: Tensor,
        columns: Tensor,
        logit_scale: Tensor,
        pairs: Pairs,
        duplicates: Duplicates | None,
    ) -> None:
        """
        Args:
            points: (U, D) this rank's.
            columns: (W * max(counts), D) the pixels of all ranks.
        """
        self._layout = layout
        self._points = points
        self._columns = columns
        self._logit_scale = logit_scale
        self._pairs = pairs
        self._duplicates = duplicates
        size = min(layout.row_chunk, layout.num_rows) * min(layout.column_chunk, max(layout.counts))
        self._buffers = (points.new_empty(size), points.new_empty(size))

    def visit(self, rows: slice) -> Iterator[Tile]:
        """The tiles of one chunk of rows."""
        scaled = self._points[rows] * self._logit_scale
        lowest = torch.finfo(scaled.dtype).min
        for columns in self._layout.column_slices():
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            logits, scratch = (buffer[: shape[0] * shape[1]].view(shape) for buffer in self._buffers)
            torch.mm(scaled, self._columns[columns].T, out=logits)
            first = self._layout.own_start(columns)
            inside = slice(0, 0) if first is None else self._pairs.of_tile(rows.start, first)
            places = (self._pairs.point[inside] - rows.start) * shape[1] + self._pairs.pixel[inside] - (first or 0)
            flat = logits.view(-1)
            pair_logits = flat[places]
            if first is not None and self._duplicates is not None:
                self._duplicates.fill_(logits, lowest, rows, slice(first, first + shape[1]))
            flat[places] = lowest
            yield Tile(columns, logits, scratch, inside, places, pair_logits)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _spans(ids: Tensor, size: int) -> list[list[int]]:
    """Lowest and highest id of each chunk."""
    spans = [torch.stack(ids[part].aminmax()) for part in _slices(0, len(ids), size)]
    return torch.stack(spans).tolist() if spans else []
