import numpy as np

from t4p.data.draws import draw_key, sample_rng


def test_golden_words():
    words = sample_rng(1, 2, "scene0000-00/000000", "rotation").bit_generator.random_raw(3)
    assert [int(word) for word in words] == [0xA6BD15F0347EE8AA, 0x188203968D4BDB70, 0xC90DF4441FA6496]


def test_each_of_seed_epoch_key_and_purpose_changes_the_draws():
    base = (1, 2, "a/b", "rotation")
    others = [(2, 2, "a/b", "rotation"), (1, 3, "a/b", "rotation"), (1, 2, "a/c", "rotation"), (1, 2, "a/b", "pairs")]
    # Parts must not run into each other.
    others += [(12, 2, "a/b", "rotation"), (1, 22, "a/b", "rotation"), (1, 2, "na/b", "rotatio")]
    draws = {sample_rng(*arguments).integers(2**62) for arguments in [base, *others]}
    assert len(draws) == 1 + len(others)
    assert sample_rng(*base).integers(2**62) == sample_rng(*base).integers(2**62)


def test_numpy_integers_draw_as_python_integers():
    assert sample_rng(np.int64(1), np.uint8(2), "k", "p").random() == sample_rng(1, 2, "k", "p").random()


def test_draws_over_many_keys_are_uniform():
    draws = np.array([sample_rng(0, 0, f"scene/{i}", "p").random() for i in range(2000)])
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert ((counts > 150) & (counts < 250)).all()


def test_samples_of_one_key_in_two_datasets_have_draws_of_their_own():
    drawn = {draw_key(dataset, key) for dataset in range(3) for key in ("a/0", "1/a", "b/0")}
    assert len(drawn) == 9
    assert draw_key(0, "a/0") == "a/0", "a run of one dataset needs no name for it"
    first, second = (sample_rng(1, 2, draw_key(dataset, "a/0"), "augment").random(4) for dataset in (0, 1))
    assert (first != second).all()
