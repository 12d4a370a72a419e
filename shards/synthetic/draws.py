"""Where the chance in a room comes from: a generator per (seed, room, purpose, frame), so that order never matters."""

from enum import IntEnum

import numpy as np

# Sines and exponentials differ between processors in their last digit; rounded to so many decimals (of metres, or of
# the entries of rotations), all that follows is sums, products and roots, which do not: packed bytes stay equal.
DECIMALS = 9
MAX_NUMBER = 2**32 - 1  # of seeds and indexes: a larger one takes two words of a seed sequence and may meet another's


class Purpose(IntEnum):
    """What is drawn. Numbers are part of what a seed means: never reuse or renumber them."""

    LAYOUT = 1
    MATERIALS = 2
    LIGHT = 3
    PATH = 4
    EXPOSURE = 5
    DEPTH_SENSOR = 6
    CAPTION = 7


def generator(seed: int, room_index: int, purpose: Purpose, frame_index: int = 0) -> np.random.Generator:
    """A fresh generator; always four words, because a seed sequence takes missing ones for zeros."""
    return np.random.default_rng([seed, room_index, int(purpose), frame_index])
