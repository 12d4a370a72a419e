"""Standing in front of every operation of torch, without its compiler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode, ABC):
    """A dispatch mode that is given each operation with its arguments, and gives the result."""

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
        return self.take(func, args, kwargs or {})

    @abstractmethod
    def take(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of one operation."""
