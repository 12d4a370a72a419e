"""Rank, world size, and collectives on plain tensors, outside autograd.

Everything works without a process group too: a process alone is rank 0 of 1. Uneven rows travel padded: W ranks with
counts[r] rows each become one (W, max(counts), ...) tensor, so that nothing is copied apart and back together.
"""

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    return dist.get_world_size() if _has_group() else 1


def rank() -> int:
    return dist.get_rank() if _has_group() else 0


@torch.no_grad()
def all_gather_ints(values: Sequence[int], device: torch.device) -> list[list[int]]:
    """Every rank's integers, by rank. Collective; each rank passes equally many.

    Args:
        device: where the process group's backend expects tensors.
    """
    own = torch.tensor([list(values)], dtype=torch.int64, device=device)
    if world_size() == 1:
        return own.tolist()
    everyone = own.new_empty(world_size(), len(values))
    dist.all_gather_into_tensor(everyone, own)
    return everyone.tolist()


@torch.no_grad()
def all_gather_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """Every rank's rows. Collective.

    Args:
        rows: (counts[rank()], ...) the same trailing shape and dtype on every rank.
        counts: rows of each rank, known to all of them (all_gather_ints).

    Returns:
        (W, max(counts), ...); entry [r, counts[r]:] is padding, zeros. Alone: a view of rows.
    """
    if world_size() == 1:
        return rows.detach()[None]
    longest = max(counts)
    everyone = rows.new_empty(world_size(), longest, *rows.shape[1:])
    if everyone.numel():
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        dist.all_gather_into_tensor(everyone.flatten(0, 1), padded)
    return everyone


@torch.no_grad()
def reduce_scatter_rows(contributions: Tensor, counts: Sequence[int]) -> Tensor:
    """Sum over ranks what each of them contributes to the rows of all; every rank gets its own rows. Collective.

    The way back of all_gather_rows.

    Args:
        contributions: (W, max(counts), ...).
        counts: rows of each rank.

    Returns:
        (counts[rank()], ...). Alone: a view of contributions.
    """
    if world_size() == 1 or contributions.numel() == 0:
        return contributions[rank(), : counts[rank()]]
    own = torch.empty_like(contributions[0])
    dist.reduce_scatter_tensor(own, contributions.flatten(0, 1))
    return own[: counts[rank()]]


@torch.no_grad()
def all_gather_equal(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Every rank's tensor, of one shape and dtype on all of them: (W, ...). Collective in the group; None is all."""
    everyone = tensor.new_empty(dist.get_world_size(group), *tensor.shape)
    dist.all_gather_into_tensor(everyone, tensor.contiguous()[None], group=group)
    return everyone


@torch.no_grad()
def all_reduce_sum(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Sum over ranks, in place; returns the tensor. Collective in the group; None is all ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


@torch.no_grad()
def all_reduce_max(tensor: Tensor) -> Tensor:
    """Elementwise maximum over ranks, in place; returns the tensor. Collective."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def nodes_of_ranks(device: torch.device) -> tuple[int, ...]:
    """The machine (or container) that each rank runs on, numbered by their first ranks. Collective.

    Args:
        device: where the process group's backend expects tensors.
    """
    name = hashlib.blake2b(socket.gethostname().encode() + _boot_id(), digest_size=7).digest()
    names = [name for (name,) in all_gather_ints([int.from_bytes(name)], device)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


def _boot_id() -> bytes:
    """What tells machines of one name apart; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return b""


def subgroup(size: int) -> dist.ProcessGroup:
    """This rank's group when the world is cut into groups of `size` consecutive ranks. Collective.

    Args:
        size: divides the world size.
    """
    own, _ = dist.new_subgroups(size)
    return own


def barrier() -> None:
    """Wait for every rank. Collective."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank; must pickle. Collective."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_gather_objects(value: T) -> list[T]:
    """Every rank's value, by rank; must pickle. Collective."""
    if world_size() == 1:
        return [value]
    everyone: list[T | None] = [None] * world_size()
    dist.all_gather_object(everyone, value)
    return [value for value in everyone if value is not None]


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
