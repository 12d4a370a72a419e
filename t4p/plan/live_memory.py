"""Which tensors are alive when: the memory that a piece of torch code holds, operation by operation, on any device.

A storage counts from the operation that makes it to its release, so views and in-place operations cost nothing, and
what autograd keeps for the backward pass counts until it lets go. What a kernel takes and gives back within one
operation (the workspace of a convolution) and what an allocator adds (rounding, fragments) are not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # noqa: TID253 - imported by measure.py only, which commands/main.py imports inside its command
from numpy.typing import NDArray
from torch import Tensor, UntypedStorage  # noqa: TID253

from t4p.models.operations import Operations

aten = torch.ops.aten


class _End(weakref.ref[UntypedStorage]):
    """Tells of the end of a storage. A tenth of what weakref.finalize costs, 100,000 times."""

    __slots__ = ("key",)
    key: int


@dataclass(eq=False)
class _Storage:
    size_bytes: int
    born: int
    died: int | None = None
    end: _End | None = None


class LiveMemory(Operations):
    """Follows every storage that is made while the mode is on.

    Attributes:
        now: operations seen so far: the clock of `timeline`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._alive: dict[int, _Storage] = {}
        self._all: list[_Storage] = []

    def take(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the operation, then look for results that share no storage with its arguments."""
        result = self._run(func, args, kwargs)
        self.now += 1
        # 100,000 operations come by here: arguments are looked at only where a result is not known.
        results = (result,) if isinstance(result, Tensor) else _tensors(result)
        new = [storage for storage in map(_storage, results) if storage._cdata not in self._alive]
        if new:
            before = {storage._cdata for storage in map(_storage, _tensors((args, kwargs)))}
            for storage in new:
                if storage._cdata not in before:
                    self._watch(storage)
        return result

    def timeline(self, of: Iterable[Tensor] | None = None) -> NDArray[np.int64]:
        """(now + 2,) bytes alive after each operation, 0 at first; the last entry is what is alive at present.

        Args:
            of: only the storages of these tensors, which are alive; None is all that the mode saw.
        """
        chosen = (
            self._all
            if of is None
            else [s for s in (self._alive.get(_storage(tensor)._cdata) for tensor in of) if s is not None]
        )
        change = np.zeros(self.now + 2, dtype=np.int64)
        for storage in chosen:
            change[storage.born] += storage.size_bytes
            if storage.died is not None:
                change[storage.died] -= storage.size_bytes
        return np.cumsum(change)

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _watch(self, storage: UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or storage.nbytes() == 0:
            return
        self._alive[key] = watched = _Storage(storage.nbytes(), self.now)
        self._all.append(watched)
        watched.end = _End(storage, self._release)
        watched.end.key = key

    def _release(self, end: _End) -> None:
        released = self._alive.pop(end.key)
        released.died = self.now + 1
        released.end = None


class SizesOnly(LiveMemory):
    """The same with zeros for most results: their sizes are those of a real run, most of its time is not spent."""

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stand_in = _STAND_INS.get(func)
        return super()._run(func, args, kwargs) if stand_in is None else stand_in(*args, **kwargs)


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    shapes = (x.to("meta"), weight.to("meta"), None if bias is None else bias.to("meta"))
    return x.new_zeros(aten.convolution.default(*shapes, *settings).shape)


def _index_add_(x: Tensor, dim: int, index: Tensor, source: Tensor, **settings: Any) -> Tensor:
    return x if x.is_floating_point() else aten.index_add_.default(x, dim, index, source, **settings)


def _index_select(x: Tensor, dim: int, index: Tensor) -> Tensor:
    if not x.is_floating_point():  # a place, which decides over sizes
        return aten.index_select.default(x, dim, index)
    return x.new_zeros(*x.shape[:dim], len(index), *x.shape[dim:][1:])


def _to_copy(x: Tensor, *, dtype: torch.dtype | None = None, **settings: Any) -> Tensor:
    if settings.get("device") not in (None, x.device) or not (
        x.is_floating_point() and (dtype or x.dtype).is_floating_point
    ):
        return aten._to_copy.default(x, dtype=dtype, **settings)
    return torch.zeros_like(x, dtype=dtype)


def _batch_norm(x: Tensor, weight: Tensor | None, *settings: Any) -> tuple[Tensor, ...]:
    if weight is None or not settings[3]:  # in evaluation it keeps no statistics
        return aten.native_batch_norm.default(x, weight, *settings)
    return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)


def _batch_norm_backward(grad: Tensor, x: Tensor, weight: Tensor | None, *settings: Any) -> tuple[Tensor | None, ...]:
    wanted = settings[-1]
    if weight is None:
        return aten.native_batch_norm_backward.default(grad, x, weight, *settings)
    return tuple(
        torch.zeros_like(of) if needed else None for of, needed in zip((x, weight, weight), wanted, strict=True)
    )


_STAND_INS: dict[Any, Callable[..., Any]] = {
    aten.mm.default: lambda x, y: x.new_zeros(x.shape[0], y.shape[1]),
    aten.mm.out: lambda x, y, *, out: out.zero_(),
    aten.addmm.default: lambda _, x, y, **scales: x.new_zeros(x.shape[0], y.shape[1]),
    aten.addmm_.default: lambda total, x, y, **scales: total,
    aten.bmm.default: lambda x, y: x.new_zeros(*x.shape[:2], y.shape[2]),
    aten.convolution.default: _convolution,
    aten._to_copy.default: _to_copy,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.index_add_.default: _index_add_,
    aten.index_select.default: _index_select,
}


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _storage(tensor: Tensor) -> UntypedStorage:
    return tensor.untyped_storage()
