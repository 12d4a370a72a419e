"""Text4Point for programs: a few names, each loaded at its first use. docs/python.md shows every one in three lines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from t4p.data.frames import frames
    from t4p.data.point_stream import stream
    from t4p.losses.contrastive import contrastive_loss
    from t4p.models.network import network
    from t4p.tasks.model import load

__all__ = ["contrastive_loss", "frames", "load", "network", "stream"]

_MODULES = {
    "contrastive_loss": "t4p.losses.contrastive",
    "frames": "t4p.data.frames",
    "load": "t4p.tasks.model",
    "network": "t4p.models.network",
    "stream": "t4p.data.point_stream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 't4p' has no attribute {name!r}; it has {', '.join(__all__)}, and its packages")
    found = getattr(import_module(_MODULES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
