"""Modules with zeros for weights, made in no time: for those who only want to know sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def with_zeros(build: Callable[[], AnyModule]) -> AnyModule:
    """What `build` builds, on the CPU, with zeros in all parameters and buffers.

    Drawing the random weights of RN50 and of a network of 38 million takes 1.5 CPU seconds.
    """
    with torch.device("meta"):
        module = build()
    module.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    return module
