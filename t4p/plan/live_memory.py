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
from torch import Tensor  # noqa: TID253
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: TID253


@dataclass(eq=False)
class _Storage:
    size_bytes: int
    born: int
    died: int | None = None


class LiveMemory(TorchDispatchMode):
    """Follows every storage that is made while the mode is on.

    Attributes:
        now: operations seen so far: the clock of `timeline`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self._alive: dict[int, _Storage] = {}
        self._all: list[_Storage] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation, then look for results that share no storage with its arguments."""
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        self.now += 1
        # 100,000 operations come by here: arguments are looked at only where a result is not known.
        new = [tensor for tensor in _tensors(result) if _key(tensor) not in self._alive]
        if new:
            before = {_key(tensor) for tensor in _tensors((args, kwargs))}
            for tensor in new:
                if _key(tensor) not in before:
                    self._watch(tensor)
        return result

    def timeline(self, of: Iterable[Tensor] | None = None) -> NDArray[np.int64]:
        """(now + 2,) bytes alive after each operation, 0 at first; the last entry is what is alive at present.

        Args:
            of: only the storages of these tensors, which are alive; None is all that the mode saw.
        """
        chosen = self._all if of is None else [s for s in map(self._alive.get, map(_key, of)) if s is not None]
        change = np.zeros(self.now + 2, dtype=np.int64)
        for storage in chosen:
            change[storage.born] += storage.size_bytes
            if storage.died is not None:
                change[storage.died] -= storage.size_bytes
        return np.cumsum(change)

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _watch(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = _key(tensor)
        if key in self._alive or storage.nbytes() == 0:
            return
        self._alive[key] = watched = _Storage(storage.nbytes(), self.now)
        self._all.append(watched)
        weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self._alive.pop(key).died = self.now + 1


class SizesOnly(LiveMemory):
    """The same with zeros for matrix products: all sizes are those of a real run, most of its time is not spent."""

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten.mm.default:
            return args[0].new_zeros(args[0].shape[0], args[1].shape[1])
        if func is torch.ops.aten.mm.out:
            return kwargs["out"].zero_()
        if func is torch.ops.aten.addmm_.default:
            return args[0]
        return super()._run(func, args, kwargs)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
