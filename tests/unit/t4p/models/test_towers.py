"""Words that the tower of the rooms has never read are known, and so are those of it that fit anything."""

from __future__ import annotations

from t4p.config.clip_models import words_not_learnt
from t4p.config.network import ClipConfig, NetworkConfig
from t4p.models.towers import NEUTRAL_WORDS, load_towers_from, neutral_words

ROOMS = ClipConfig(name="configs/clip/small-rooms.json", pretrained="configs/clip/small-rooms.safetensors")


def test_words_that_the_tower_of_the_rooms_was_never_trained_with_are_named_once() -> None:
    assert words_not_learnt(ROOMS, ["a chair", "two Sofas", "bookshelves"]) == ()
    assert words_not_learnt(ROOMS, ["a red chair", "dog-house, red"]) == ("red", "dog", "house")
    assert words_not_learnt(ROOMS, ["?", "a chair!"]) == ("?",), "a phrase without a word is none that it has read"
    assert words_not_learnt(ClipConfig(), ["whatever"]) == (), "a CLIP of the whole language has no list"


def test_the_list_of_words_is_what_the_weights_were_trained_with() -> None:
    """Embeddings that no step has touched keep the length they began with, near 0.11."""
    model = load_towers_from(ROOMS, 0).model
    lengths = model.token_embedding.weight.norm(dim=1)
    tokenize = load_towers_from(ROOMS, 0).tokenizer.encode
    for word in ("chair", "wardrobes", "behind", "nothing"):
        assert not words_not_learnt(ROOMS, [word])
        assert min(lengths[token] for token in tokenize(word)) > 0.3
    for word in ("dog", "walls", "several"):
        assert words_not_learnt(ROOMS, [word]) == (word,)
        assert min(lengths[token] for token in tokenize(word)) < 0.2


def test_neutral_words_are_four_that_the_tower_knows_and_that_are_no_labels() -> None:
    towers = load_towers_from(ROOMS, 0)
    found = neutral_words(NetworkConfig(clip=ROOMS, labels=("room", "chair")), towers)
    assert tuple(found) == ("view", "picture", "photo")
    assert {*found} < {*NEUTRAL_WORDS}
    assert all(embedding.shape == (64,) for embedding in found.values())
