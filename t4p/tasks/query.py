"""How well phrases fit: each of them alone against the labels of a network and words that fit anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def spelling(word: str) -> str:
    """What all spellings of a word have in common: without case, with single spaces."""
    return " ".join(word.split()).casefold()


def query_scores(
    features: NDArray[np.float32],
    phrases: Mapping[str, NDArray[np.float32]],
    others: Mapping[str, NDArray[np.float32]],
    logit_scale: float,
    label_of: Mapping[str, str] | None = None,
) -> NDArray[np.float32]:
    """The share of each phrase in a softmax over itself and the others; phrases do not compete with each other.

    Args:
        features: (V, d) unit-norm.
        phrases: Q phrases and their (d,) embeddings, unit-norm.
        others: likewise; one that is the phrase itself, in whatever spelling, counts once.
        logit_scale: multiplier of the cosines.
        label_of: of synonyms, the label that they are words of, against which they are not weighed.

    Returns:
        (V, Q) in [0, 1].
    """
    scores = np.empty((len(features), len(phrases)), np.float32)
    label_of_word = {spelling(word): spelling(label) for word, label in (label_of or {}).items()}
    for column, (phrase, embedding) in enumerate(phrases.items()):
        same = (spelling(phrase), label_of_word.get(spelling(phrase)))
        against = [other for word, other in others.items() if spelling(word) not in same]
        logits = logit_scale * (features @ np.stack([embedding, *against]).T)
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        scores[:, column] = logits[:, 0] / logits.sum(axis=1)
    return scores


def rule_of_scores(labels: Sequence[str], neutral: Sequence[str], logit_scale: float) -> str:
    """The rule of `query_scores` in words."""
    against = f"the {len(labels)} labels" + (f" and the neutral words {', '.join(neutral)}" if neutral else "")
    return (
        f"The score of a phrase is its share in a softmax over itself, {against}, of {logit_scale:.3g} times the "
        "cosines between the point's feature and the texts; phrases do not compete with each other or their label."
    )
