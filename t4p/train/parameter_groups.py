"""Which parameters decay, and whose learning rate is a multiple of the run's: the groups of the optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

ParameterGroups = list[dict[str, Any]]


@dataclass(frozen=True)
class GroupSettings:
    """How the parameters of a module are grouped. Parts are named as in it: `net.head`, `prompt_tokens`.

    Attributes:
        fast_parts: parts whose learning rate is `fast_scale` times the run's.
        undecayed: names of parameters that do not decay though they are matrices.
        slow_parts: parts, each with what the run's learning rate is multiplied by there.
    """

    fast_parts: tuple[str, ...] = ()
    fast_scale: float = 1.0
    undecayed: tuple[str, ...] = ()
    slow_parts: tuple[tuple[str, float], ...] = ()


ONE_RATE = GroupSettings()


def slow_parts_of(stages: Sequence[Sequence[str]], decay: float) -> tuple[tuple[str, float], ...]:
    """Layer-wise decay of the learning rate, as in BEiT (Bao et al., 2022): decay to the power of the distance.

    Args:
        stages: names of the parts of each stage, from the input on; the last is at distance 1 from the head.
        decay: in (0, 1]; 1 is no decay, and nothing is slow.
    """
    if decay == 1.0:
        return ()
    return tuple((part, decay ** (len(stages) - stage)) for stage, parts in enumerate(stages) for part in parts)


def parameter_groups(
    module: nn.Module, weight_decay: float, settings: GroupSettings = ONE_RATE
) -> tuple[ParameterGroups, tuple[float, ...]]:
    """The trained parameters as torch's optimizers take them, each in one group; no group is empty.

    Of each learning rate, the highest first: matrices, which decay, then biases, norms, temperatures and what is
    named. The fast parts come last and are one group, whole, though their biases then decay too: a group of a few
    numbers leaves ranks of a large world without any, and DeepSpeed 0.19.8 then cannot load a universal checkpoint
    ("list index out of range"). Slow parts make small ones, of the norms of each stage: that of a stem of 32 channels
    has 64 numbers. `t4p.config.check` refuses worlds in which a rank would have none of them.

    Returns:
        The groups, with their weight decay; and what the learning rate of each is multiplied by.
    """
    members: dict[_Kind, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if _is_in(name, settings.fast_parts):
            fast, scale, decays = True, settings.fast_scale, True
        else:
            fast, decays = False, parameter.ndim >= 2 and name not in settings.undecayed
            scale = next((scale for part, scale in settings.slow_parts if _is_in(name, (part,))), 1.0)
        members.setdefault(_Kind(fast, scale, decays), []).append(parameter)
    keys = sorted(members, key=lambda key: (key.fast, -key.scale, not key.decays))
    groups = [{"params": members[key], "weight_decay": weight_decay if key.decays else 0.0} for key in keys]
    return groups, tuple(key.scale for key in keys)


class _Kind(NamedTuple):
    """What the parameters of a group have in common."""

    fast: bool
    scale: float
    decays: bool


def _is_in(name: str, parts: Sequence[str]) -> bool:
    """Whether a parameter is one of these parts, or in one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)
