"""What open_clip would import and nobody here asks for, held back while it is imported.

Beside torch (2.3 CPU seconds on the machine where this was measured) open_clip took 4.6, of which 3.9 were:

- torch's compiler, 2.9: torchvision's roi_align takes one small function of it by name. While open_clip is imported it
  gets a function that looks up the real one when it is called, which open_clip never does.
- timm, 1.0: 900 image models. Its towers have no dense reading and are refused before one is built, and open_clip knows
  what to do where timm is not installed. That is done only in processes of the command line and in launched workers:
  in somebody's notebook open_clip stays whole.

Afterwards whoever imports either gets the real thing, and what was imported before is left alone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
COMPILER_UTILS = "torch._dynamo.utils"


class _OnUse(ModuleType):
    """Stands for a module until something of it is used, which is then the real module's."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and (name, self.__name__) != ("__path__", COMPILER):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


def _real(name: str) -> ModuleType:
    for stand_in in (COMPILER, COMPILER_UTILS):
        if isinstance(sys.modules.get(stand_in), _OnUse):
            del sys.modules[stand_in]
    return importlib.import_module(name)


def _is_compile_supported(device_type: str) -> bool:
    return _real(COMPILER_UTILS).is_compile_supported(device_type)


@contextmanager
def compiler_on_use() -> Iterator[None]:
    """Imports of torch's compiler get a stand-in, which becomes the real one when anything but one function is used."""
    if COMPILER in sys.modules:
        yield
        return
    utils = _OnUse(COMPILER_UTILS)
    utils.__dict__["is_compile_supported"] = _is_compile_supported
    sys.modules |= {COMPILER: _OnUse(COMPILER), COMPILER_UTILS: utils}
    try:
        yield
    finally:
        for name in (COMPILER, COMPILER_UTILS):
            if isinstance(sys.modules.get(name), _OnUse):
                del sys.modules[name]


@contextmanager
def as_if_absent(name: str) -> Iterator[None]:
    """Importing a package that is not there yet raises ModuleNotFoundError, as Python does for None in sys.modules."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def is_ours() -> bool:
    """Whether this process is one of the command line, or a worker: only those have the floors above."""
    return not sys.modules.keys().isdisjoint(("commands", "launch"))
