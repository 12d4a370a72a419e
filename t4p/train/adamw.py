"""torch's AdamW without torch's compiler.

torch decorates the methods of its optimizers for torch.compile, and the decorators import the compiler when the first
one is called: 3 CPU seconds at the start of every worker, half of what else its imports take. The functions below the
decorators are the same; nothing here is ever compiled.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch


def _undecorated(name: str) -> Any:
    return inspect.unwrap(getattr(torch.optim.AdamW, name))


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW: the same numbers and the same state, in fewer imports."""

    add_param_group = _undecorated("add_param_group")
    zero_grad = _undecorated("zero_grad")
    step = torch.no_grad()(_undecorated("step"))  # what its decorator does beside
    state_dict = _undecorated("state_dict")
    load_state_dict = _undecorated("load_state_dict")
