"""Random draws for one sample, the same whichever worker makes them."""

import hashlib

import numpy as np


def sample_rng(seed: int, epoch: int, key: str, purpose: str) -> np.random.Generator:
    """A random generator that belongs to one sample in one epoch, for one purpose.

    It depends on nothing else: not on the rank, the worker process, the step, or what was drawn before.

    Args:
        seed: seed of the run.
        epoch: 0 or more; the same sample is augmented differently in each.
        key: key of the sample, unique in its dataset. (Two samples of two datasets with one key share their draws.)
        purpose: what is drawn ("rotation", "pairs_e"): one purpose's draws never shift another's.

    Returns:
        A fresh numpy Generator over Philox.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(int(seed)), str(int(epoch)), purpose, key):
        encoded = part.encode()
        # The length in front keeps ("ab", "c") apart from ("a", "bc").
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    words = np.frombuffer(digest.digest(), dtype="<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(key=words))
