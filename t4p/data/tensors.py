"""Between arrays of the host and tensors of whatever device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor of the same memory where torch takes it, else of a copy: Pillow's images are read-only."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def moved(record: Record, device: torch.device) -> Record:
    """A record with its tensors on `device`."""
    found = {field.name: getattr(record, field.name) for field in fields(record)}
    tensors = {name: value.to(device, non_blocking=True) for name, value in found.items() if isinstance(value, Tensor)}
    return replace(record, **tensors)


def scalar_beside(tensor: Tensor, value: float) -> Tensor:
    """A float32 scalar on the tensor's device, to divide by.

    An accelerator divides by a Python number with its reciprocal, and rounds otherwise than a CPU.
    """
    return torch.full((), value, dtype=torch.float32, device=tensor.device)


def numbers_beside(tensor: Tensor, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
    """Numbers of the host on the tensor's device."""
    return torch.tensor(values, dtype=dtype).to(tensor.device, non_blocking=True)
