"""The statistics do what they promise, shown by simulation: few false alarms, intervals that cover, differences that are found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.compare.statistics import detectable, interval_of_means, interval_of_shares, mcnemar, paired, sign_flip


def binary(rng: np.random.Generator, items: int, first: float, won: float, lost: float) -> tuple[np.ndarray, np.ndarray]:
    """Two models' scores: the second wins and loses items with the given probabilities."""
    kind = rng.random(items)
    second_only, first_only = kind < won, (kind >= won) & (kind < won + lost)
    both = rng.random(items) < first
    return np.where(first_only, 1.0, np.where(second_only, 0.0, both)), np.where(second_only, 1.0, np.where(first_only, 0.0, both))


@pytest.mark.parametrize(
    ("won", "lost", "p_value"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 2**10), (0, 10, 2 / 2**10), (15, 5, 0.04138946533203125)]
)
def test_mcnemars_exact_test_gives_the_binomial_tails(won: int, lost: int, p_value: float) -> None:
    assert mcnemar(won, lost) == pytest.approx(p_value)


@pytest.mark.parametrize(("won", "lost"), [(0.1, 0.1), (0.02, 0.02), (0.0, 0.0)])
def test_equal_models_are_called_different_in_at_most_one_of_twenty_trials(won: float, lost: float) -> None:
    rng = np.random.default_rng(0)
    alarms = [paired(*binary(rng, 200, 0.6, won, lost), 1000, 0.05, trial).p_value < 0.05 for trial in range(400)]
    assert np.mean(alarms) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(("won", "lost"), [(0.3, 0.1), (0.05, 0.05), (0.01, 0.03), (0.0, 0.02), (0.005, 0.005)])
def test_the_interval_of_two_accuracies_covers_their_true_difference(won: float, lost: float) -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(400):
        wins, losses, _ties = rng.multinomial(300, [won, lost, 1 - won - lost])
        low, high = interval_of_shares(int(wins), int(losses), 300, 1000, rng)
        covered.append(low <= won - lost <= high)
    assert np.mean(covered) >= 0.93


def test_the_interval_of_a_mean_covers_it_and_the_permutation_test_raises_few_false_alarms() -> None:
    rng = np.random.default_rng(2)
    covered, alarms = [], []
    for _ in range(300):
        differences = rng.gamma(2.0, 0.5, 120) - 1.0  # skewed, with a mean of zero
        low, high = interval_of_means(differences, 1000, rng)
        covered.append(low <= 0 <= high)
        alarms.append(sign_flip(rng.normal(0, 1, 60), 1000, rng) < 0.05)
    assert np.mean(covered) >= 0.91
    assert np.mean(alarms) <= 0.08


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    rng = np.random.default_rng(3)
    discordant, items = 0.2, 300
    difference = detectable(discordant, items, 0.05)
    won, lost = (discordant + difference) / 2, (discordant - difference) / 2
    found = [paired(*binary(rng, items, 0.6, won, lost), 1000, 0.05, trial).p_value < 0.05 for trial in range(400)]
    assert 0.72 <= np.mean(found) <= 0.88


def test_models_that_never_differ_keep_an_honest_doubt() -> None:
    scores = np.ones(100)
    same = paired(scores, scores, 2000, 0.05, 0)
    assert (same.difference, same.p_value, same.won, same.lost) == (0.0, 1.0, 0, 0)
    assert -0.05 < same.low < 0 < same.high < 0.05


def test_scores_that_are_no_shares_are_compared_by_their_mean() -> None:
    rng = np.random.default_rng(4)
    first = rng.normal(2.0, 0.5, 150)
    better = paired(first, first - rng.normal(0.2, 0.1, 150), 2000, 0.05, 0)
    assert better.high < 0
    assert better.p_value == pytest.approx(1 / 2001)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 2**32 - 1))
def test_exchanging_the_models_mirrors_the_comparison_and_the_seed_fixes_it(items: list[tuple[bool, bool]], seed: int) -> None:
    first, second = (np.array([pair[side] for pair in items], dtype=float) for side in (0, 1))
    there, back = paired(first, second, 1000, 0.05, seed), paired(second, first, 1000, 0.05, seed)
    assert there == paired(first, second, 1000, 0.05, seed)
    assert (there.difference, there.p_value, there.won) == (-back.difference, back.p_value, back.lost)
    assert there.low <= there.high
    assert there.low == pytest.approx(-back.high, abs=3 / (len(items) + 2))


def test_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired(np.ones(3), np.ones(4), 1000, 0.05, 0)
