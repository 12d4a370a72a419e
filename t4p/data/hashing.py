"""Random draws by hashing what they are for: the same bits on every device, whatever else is drawn beside them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The finaliser of splitmix64 (Steele, Lea and Flood 2014), its constants as two's complement: int64 products wrap round
# alike on CPUs and accelerators, and torch has no 64-bit unsigned arithmetic.
_FIRST, _SECOND, _GOLDEN = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB
_FRACTION_BITS = 24  # a float32 holds each of so many bits' values exactly


def draw_words(seeds: Tensor, *codes: Tensor) -> Tensor:
    """A word for each thing that is drawn for: uniform over all int64, and a function of its own seed and codes alone.

    Args:
        seeds: (N,) int64, of the stream of draws that each belongs to.
        codes: each (N,) int64; together they say what it is (a voxel; a voxel and a pixel).

    Returns:
        (N,) int64.
    """
    words = seeds
    for code in codes:
        words = _mixed((words ^ code) + _GOLDEN)
    return words


def uniforms_of(words: Tensor) -> Tensor:
    """Words to float32 in (0, 1], uniform in steps of 2^-24."""
    return (_shifted(words, 64 - _FRACTION_BITS) + 1).float() * 2.0**-_FRACTION_BITS


def normals_of(words: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals of each word (Box and Muller 1958), float32."""
    angle = (words & ((1 << _FRACTION_BITS) - 1)).float() * (2 * math.pi * 2.0**-_FRACTION_BITS)
    radius = torch.sqrt(-2 * torch.log(uniforms_of(words)))
    return radius * torch.cos(angle), radius * torch.sin(angle)


def smallest_of_frames(words: Tensor, frames: Tensor, num_of_frame: list[int], at_most: int) -> Tensor:
    """Which items to keep where each frame keeps the `at_most` with the smallest words: a uniform draw.

    One item more or less changes what is kept by one item, which a draw of positions in a list would not.

    Args:
        words: (N,) int64.
        frames: (N,) int64, ascending: the frame of each.
        num_of_frame: items of every frame, on the host, so that nobody waits for the device.

    Returns:
        (M,) int64 rows, ascending.
    """
    # Fewer than 2^16 frames, and 47 bits of the word: of 30,000 items two are equal once in 300,000 frames.
    order = torch.sort((frames << 47) | _shifted(words, 17), stable=True).indices
    kept, first = [order[:0]], 0
    for num in num_of_frame:
        kept.append(order[first : first + min(num, at_most)])
        first += num
    return torch.sort(torch.cat(kept)).values


def _mixed(words: Tensor) -> Tensor:
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, filled with zeros: torch's own shift fills with the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
