"""Random draws for one sample, the same whichever worker makes them."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def sample_rng(seed: int, epoch: int, key: str, purpose: str) -> np.random.Generator:
    """A random generator that belongs to one sample in one epoch, for one purpose.

    It depends on nothing else: not on the rank, the worker process, the step, or what was drawn before.

    Args:
        seed: seed of the run.
        epoch: 0 or more; the same sample is augmented differently in each.
        key: what `draw_key` gives for the sample.
        purpose: what is drawn ("rotation", "pairs_e"): one purpose's draws never shift another's.

    Returns:
        A fresh numpy Generator over Philox.
    """
    return np.random.Generator(np.random.Philox(key=_words(seed, epoch, key, purpose)))


def sample_seed(seed: int, epoch: int, key: str, purpose: str) -> int:
    """An int64 that the draws for voxels and pairs begin with (t4p/data/hashing.py), keyed as `sample_rng`."""
    return int(_words(seed, epoch, key, purpose).view(np.int64)[0])


def draw_key(dataset_index: int, key: str) -> str:
    """What the draws of a sample are keyed by: its key, and among several datasets which one it is of.

    Args:
        dataset_index: position among the datasets of the run.
        key: of the sample, unique in its dataset; no key holds a colon.
    """
    return f"{dataset_index}:{key}" if dataset_index else key


def _words(seed: int, epoch: int, key: str, purpose: str) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(int(seed)), str(int(epoch)), purpose, key):
        encoded = part.encode()
        # The length in front keeps ("ab", "c") apart from ("a", "bc").
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return np.frombuffer(digest.digest(), dtype="<u8").astype(np.uint64)
