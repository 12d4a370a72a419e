"""An accelerator that is not there: tensors say that they are on it, a CPU computes, and everything is counted.

Where no accelerator is at hand it tells what one would do with a piece of code: kernels started, waits of the host,
copies, tensors on the wrong device. Where an accelerator's arithmetic is known to differ from a CPU's it has that: a
product and a sum are rounded once, and dividing by a Python number is multiplying with its reciprocal. What it cannot
show: speed, memory, and kernels whose results depend on the order of threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_NAME = "pretended"
_CPU = torch.device("cpu")
# Operations that start nothing: they look at the same memory otherwise, or take some.
# fmt: off
_VIEWS = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "t", "transpose", "permute", "slice", "select", "split", "unbind",
    "expand", "detach", "alias", "as_strided", "squeeze", "unsqueeze", "diagonal", "unfold", "lift_fresh", "empty",
    "empty_like", "new_empty", "empty_strided", "new_empty_strided",
))
# Operations whose result has a size that only the device knows, or is a number: the host waits for it.
_WAITS = frozenset((
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "equal", "is_nonzero", "repeat_interleave",
))
# fmt: on
_COPIES = frozenset(("_to_copy", "copy_"))


@dataclass
class Counts:
    """What happened on the device, by operation.

    Attributes:
        kernels: started.
        waits: of the host, for a size or a value.
        copies: from the host.
        mixed: operations that were given tensors of both devices.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    mixed: Counter[str] = field(default_factory=Counter)


@contextmanager
def pretended_device() -> Iterator[tuple[torch.device, Counts]]:
    """The device, and what happened on it so far; tensors there can be used inside of the context alone.

    The first call of a process names torch's place for such devices, which stays taken; outside of the context nothing
    is there. Once a process of which it is has computed gradients, none that is forked from it can: give it one of its
    own.
    """
    if torch._C._get_privateuse1_backend_name() != _NAME:
        _setup_privateuseone_for_python_backend(_NAME, _BACKEND)
    counts = Counts()
    _BACKEND.num_open += 1
    try:
        with _Device(counts):
            yield torch.device(_NAME, 0), counts
    finally:
        _BACKEND.num_open -= 1


class _Backend(_DummyBackendModule):
    """What torch asks about the device. Were it there for ever, torch would checkpoint activations for it, too.

    Attributes:
        num_open: contexts.
    """

    num_open = 0

    def is_available(self) -> bool:
        return self.num_open > 0


_BACKEND = _Backend()


class _PretendedTensor(Tensor):
    """A tensor of the device; its content is on the CPU."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> _PretendedTensor:
        made: _PretendedTensor = Tensor._make_wrapper_subclass(
            cls,
            content.size(),
            strides=content.stride(),
            storage_offset=content.storage_offset(),
            dtype=content.dtype,
            device=torch.device(_NAME, 0),
        )
        made.content = content
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"pretended({self.content})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func}: a tensor of the pretended device was used outside of its context")


class _Device(TorchDispatchMode):
    """Computes what tensors of the device take part in."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        given = [each for each in tree.tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        here = [each for each in given if isinstance(each, _PretendedTensor)]
        wanted = kwargs.get("device")
        to_here = wanted is not None and torch.device(wanted).type == _NAME
        plain_args, plain_kwargs = tree.tree_map(_plain, (tuple(args), kwargs))
        plain_kwargs.pop("pin_memory", None)
        found = _COMPUTED_OTHERWISE.get(name, _computed)(func, plain_args, plain_kwargs)
        if not here and not to_here:
            return found
        from_here = bool(here) and name in _COPIES and wanted is not None and not to_here
        self._count(name, args, given, from_here=from_here or (name == "copy_" and args[0] not in here))
        if from_here or name == "_local_scalar_dense":
            return found
        return tree.tree_map(lambda each: _shown(each, here), found)

    def _count(self, name: str, args: Sequence[Any], given: Sequence[Tensor], *, from_here: bool) -> None:
        beside = [each for each in given if not isinstance(each, _PretendedTensor)]
        if name in _VIEWS:
            return
        if from_here or name in _WAITS or (name.startswith("index") and _has_mask(args)):
            self._counts.waits[name] += 1
        if name in _COPIES and beside and not from_here:
            self._counts.copies[name] += 1
        elif name not in _COPIES and any(each.dim() for each in beside):
            self._counts.mixed[name] += 1
        self._counts.kernels[name] += 1


def _plain(value: Any) -> Any:
    if isinstance(value, _PretendedTensor):
        return value.content
    return _CPU if isinstance(value, torch.device) and value.type == _NAME else value


def _shown(found: Any, given: Sequence[_PretendedTensor]) -> Any:
    if not isinstance(found, Tensor):
        return found
    for each in given:  # an operation in place gives what it was given
        if each.content is found:
            return each
    return _PretendedTensor(found)


def _has_mask(args: Sequence[Any]) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(each, Tensor) and each.dtype == torch.bool for each in indices)


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _fused(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A product and a sum, rounded once."""
    added, one, other = args[:3]
    if kwargs or not one.is_floating_point():
        return func(*args, **kwargs)
    wide = [each.numpy().astype(np.longdouble) for each in (added, one, other)]
    return torch.from_numpy(np.asarray(wide[0] + wide[1] * wide[2]).astype(one.numpy().dtype))


def _by_reciprocal(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Division by a number of the host is a product with its reciprocal."""
    one, other = args[:2]
    if kwargs or not one.is_floating_point() or isinstance(other, Tensor):
        return func(*args, **kwargs)
    return one * (1 / torch.tensor(other, dtype=one.dtype))


_COMPUTED_OTHERWISE: Mapping[str, Callable[..., Any]] = {"addcmul": _fused, "div": _by_reciprocal}
