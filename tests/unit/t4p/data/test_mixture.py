import numpy as np
import pytest

from t4p.data.mixture import LONGEST_PATTERN, Mixture


def test_the_first_n_positions_hold_n_times_the_share_to_within_one_sample():
    rng = np.random.default_rng(0)
    for _ in range(200):
        weights = [round(float(x), int(rng.integers(1, 4))) or 0.5 for x in rng.uniform(0.01, 3, rng.integers(1, 9))]
        mixture = Mixture.of_weights(weights)
        positions = np.arange(min(3 * len(mixture.datasets), 20_000))
        datasets, numbers = mixture.locate(positions)
        held = np.stack([np.cumsum(datasets == dataset) for dataset in range(len(weights))], axis=1)
        wanted = (positions + 1)[:, None] * np.array(weights) / sum(weights)
        assert np.abs(held - wanted).max() < 1, weights
        for dataset in range(len(weights)):
            walked = numbers[datasets == dataset]
            assert (walked == np.arange(len(walked))).all(), "each dataset walks on, sample after sample"


def test_any_position_is_found_without_those_before_it():
    mixture = Mixture.of_weights([3, 0.5, 1.25])
    positions = np.array([0, 7, 10**12 + 3])
    datasets, numbers = mixture.locate(positions)
    assert datasets.tolist()[:2] == mixture.datasets[[0, 7]].tolist()
    assert abs(numbers[2] - (10**12 + 3) * [3, 0.5, 1.25][datasets[2]] / 4.75) < 1


def test_golden_pattern():
    assert Mixture.of_weights([1, 2.5, 0.7]).datasets.tolist()[:20] == [
        *[1, 1, 0, 1, 2, 1, 0, 1, 1, 2],
        *[1, 0, 1, 1, 0, 1, 2, 1, 0, 1],
    ]
    assert Mixture.of_weights([0.1, 0.1, 0.1]).datasets.tolist() == [0, 1, 2]
    assert len(Mixture.of_weights([2.0]).datasets) == 1


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 0], r"weights are \[1, 0\]; wanted numbers above 0"),
        ([1, float("inf")], "wanted numbers above 0"),
        ([], "wanted numbers above 0"),
        ([1, 0.3333333], f"no pattern of up to {LONGEST_PATTERN} samples has just these shares; give weights of fewer"),
        ([1e300, 1e-300], r"weights are \[1e\+300, 1e-300\]: no pattern .* of fewer digits$"),
    ],
)
def test_weights_that_cannot_be_are_named(weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture.of_weights(weights)
