"""Modules with zeros for weights, made in no time: for those who only want to know sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

AnyModule = TypeVar("AnyModule", bound=nn.Module)
aten = torch.ops.aten

_DRAWS_IN_PLACE = {aten.normal_.default, aten.uniform_.default, aten.erfinv_.default}
_DRAWS: dict[Any, Callable[..., Any]] = {aten.randn.default: aten.zeros.default, aten.rand.default: aten.zeros.default}


class _NothingDrawn(TorchDispatchMode):
    """Random numbers are zeros, or what is there. (Building on the meta device would import torch's compiler.)"""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks whether to wrap `__torch_dispatch__` for its compiler, which takes 2 CPU seconds to import."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _DRAWS_IN_PLACE:
            return args[0]
        return _DRAWS.get(func, func)(*args, **(kwargs or {}))


def with_zeros(build: Callable[[], AnyModule]) -> AnyModule:
    """What `build` builds, on the CPU, with zeros in all parameters and buffers.

    Drawing the random weights of RN50 and of a network of 38 million takes 1.5 CPU seconds.
    """
    with _NothingDrawn():
        module = build()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    return module
