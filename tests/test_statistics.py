"""The statistics do what they promise, shown by simulation: few false alarms, intervals that cover, differences that are found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.statistics import best_of, binary, continuous, family, figures
from stages.compare.statistics import detectable_share, hall_test, paired
from stages.core.holm import holm
from stages.core.mcnemar import mcnemar

NOISE = 3 * np.sqrt(0.05 * 0.95 / 400)  # of a share of 400 trials that is 5 %


@pytest.mark.parametrize(
    ("won", "lost", "p_value"), [(0, 0, 1.0), (5, 5, 1.0), (10, 0, 2 / 2**10), (0, 10, 2 / 2**10), (15, 5, 0.04138946533203125)]
)
def test_mcnemars_exact_test_gives_the_binomial_tails(won: int, lost: int, p_value: float) -> None:
    assert mcnemar(won, lost) == pytest.approx(p_value)


@pytest.mark.parametrize(("items", "accuracy", "agreement"), [(50, 0.3, 0.7), (200, 0.7, 0.98), (300, 0.7, 0.9), (1000, 0.95, 0.98)])
def test_right_and_wrong_answers_raise_few_false_alarms_and_the_detectable_difference_is_found_and_covered(
    items: int, accuracy: float, agreement: float
) -> None:
    cell = binary(items, accuracy, agreement)
    assert cell is not None
    seen = figures(cell, 400, 1000, 0)
    assert seen.false_claims <= 0.05 + NOISE
    assert seen.coverage >= 0.95 - NOISE
    assert 0.72 <= seen.power <= 0.88
    assert seen.stated == pytest.approx(cell.effect, rel=0.15, abs=0.01)


def test_scores_that_are_numbers_raise_few_false_alarms_and_the_detectable_difference_is_found_and_covered() -> None:
    cell = continuous(80, "t", lambda rng, size: rng.standard_t(5, size=size), 5 / 3)
    seen = figures(cell, 400, 1000, 0)
    assert seen.false_claims <= 0.05 + NOISE
    assert 0.95 - NOISE <= seen.coverage <= 0.95 + NOISE
    assert 0.72 <= seen.power <= 0.88


def test_skewed_differences_of_few_items_raise_few_false_alarms_whichever_model_has_the_rare_large_gains() -> None:
    for sign in (1, -1):
        cell = continuous(50, "skewed", lambda rng, size, sign=sign: sign * (rng.exponential(size=size) - 1), 1.0)  # type: ignore[misc]
        assert figures(cell, 1000, 400, 0).false_claims <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)


@given(st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=2, max_size=40), st.floats(0.1, 5))
def test_halls_test_mirrors_with_the_models_and_a_larger_difference_is_never_less_sure(values: list[float], step: float) -> None:
    differences = np.array(values) - np.mean(values)
    assert hall_test(differences + step) == pytest.approx(hall_test(-differences - step))
    assert hall_test(differences + 2 * step + 1) <= hall_test(differences + step + 1) + 1e-9 or differences.std() == 0


def test_holms_correction_keeps_the_chance_of_any_false_claim_of_several_tasks() -> None:
    plain, corrected = family(400, 0, sizes=(500,) * 6)
    assert corrected <= 0.05 + NOISE < plain
    assert best_of(400, 0)[1] <= 0.05 + NOISE


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holms_p_values_are_never_smaller_and_keep_the_order_of_the_tests(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    assert [q for _, q in sorted(zip(p_values, adjusted, strict=True))] == sorted(adjusted)


def test_holms_p_values_are_those_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_models_that_differ_only_by_the_effect_need_six_items_all_won_to_show_it() -> None:
    assert detectable_share(0.0, 5, 0.05) == 1
    assert 6 / 300 < detectable_share(0.0, 300, 0.05) < 9 / 300


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
