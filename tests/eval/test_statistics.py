import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval.statistics import Interval, interquartile_mean, interval, overlap, per_prompt

NAN = math.nan


def scores(seeds: int, prompts: int, *, state: int = 0) -> np.ndarray:
    return np.asarray(scipy.stats.norm.rvs(size=(seeds, prompts), random_state=state))


def known(low: float, high: float) -> Interval:
    return Interval(mean=(low + high) / 2, low=low, high=high, n=3, seeds=3, kind="")


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_a_few_seeds_give_the_paired_t_interval_of_their_means(seeds):
    before, after = scores(seeds, 7), scores(seeds, 7, state=1) + 0.3
    got = interval(before, after)
    oracle = scipy.stats.ttest_rel(after.mean(axis=1), before.mean(axis=1)).confidence_interval(0.95)
    assert (got.low, got.high) == pytest.approx((oracle.low, oracle.high))
    assert got.mean == pytest.approx((after - before).mean())
    assert (got.n, got.kind) == (seeds, f"95 % t interval over {seeds} seeds, paired")


def test_three_seeds_by_hand():
    got = interval(np.zeros((3, 2)), np.array([[0.1, 0.1], [0.0, 0.4], [0.3, 0.3]]))
    assert got.mean == pytest.approx(0.2)
    assert got.high - got.mean == pytest.approx(4.302652729911275 * 0.1 / math.sqrt(3))


def test_pairing_removes_what_seeds_have_in_common():
    shift = np.array([[0.0], [5.0], [-3.0]])
    gain = np.array([[0.1], [0.2], [0.3]])
    assert interval(shift + np.zeros((3, 4)), shift + gain + np.zeros((3, 4))).low == pytest.approx(
        interval(np.zeros((3, 4)), gain + np.zeros((3, 4))).low
    )


def test_the_t_interval_covers_the_truth_as_often_as_it_says():
    trials = 600
    gains = 0.5 + scores(trials, 3, state=3)[:, :, None]
    hits = sum(got.low <= 0.5 <= got.high for got in (interval(np.zeros((3, 1)), gain) for gain in gains))
    assert scipy.stats.binomtest(hits, trials, 0.95).pvalue > 1e-3


def test_from_five_seeds_the_interquartile_mean_and_a_bootstrap_of_whole_seeds():
    before, after = scores(6, 5), scores(6, 5, state=1)
    got = interval(before, after)
    means = (after - before).mean(axis=1)
    assert got.mean == pytest.approx(scipy.stats.trim_mean(means, 0.25))

    def statistic(x, axis):
        return scipy.stats.trim_mean(x, 0.25, axis=axis)

    oracle = scipy.stats.bootstrap((means,), statistic, method="percentile", n_resamples=20_000, rng=5)
    spread = float(np.ptp(means))
    assert got.low == pytest.approx(oracle.confidence_interval.low, abs=0.02 * spread)
    assert got.high == pytest.approx(oracle.confidence_interval.high, abs=0.02 * spread)
    assert got.kind == "interquartile mean, 95 % bootstrap over 6 seeds, paired"


@given(n=st.integers(5, 40))
def test_interquartile_mean_is_scipys_trimmed_mean(n):
    values = scores(3, n, state=n)
    np.testing.assert_allclose(interquartile_mean(values), scipy.stats.trim_mean(values, 0.25, axis=1))


def test_one_outlying_seed_of_five_does_not_move_the_centre():
    assert interval(np.zeros((5, 1)), np.array([[0.1], [0.2], [0.3], [0.4], [90.0]])).mean == pytest.approx(0.3)


def test_one_seed_is_bootstrapped_over_prompts_and_says_so():
    before, after = scores(1, 40), scores(1, 40, state=1)
    got = interval(before, after)
    oracle = scipy.stats.bootstrap(((after - before)[0],), np.mean, method="percentile", n_resamples=20_000, rng=5)
    assert got.low == pytest.approx(oracle.confidence_interval.low, abs=0.03)
    assert got.high == pytest.approx(oracle.confidence_interval.high, abs=0.03)
    assert (got.n, got.seeds, got.kind) == (40, 1, "95 % bootstrap over 40 prompts, one seed")


def test_a_bootstrap_is_the_same_for_the_same_seed_and_only_for_it():
    before, after = scores(1, 40), scores(1, 40, state=1)
    assert interval(before, after) == interval(before, after)
    assert interval(before, after) != interval(before, after, seed=1)


def test_failed_scores_are_left_out_of_both_sides():
    before = np.array([[0.1, NAN, 0.3], [0.2, 0.2, 0.2]])
    after = np.array([[0.2, 9.0, NAN], [0.5, 0.5, 0.5]])
    got = interval(before, after)
    assert got.mean == pytest.approx((0.1 + 0.3) / 2)
    assert got.n == 2


def test_a_seed_without_a_score_does_not_count():
    before = np.zeros((3, 2))
    after = np.array([[0.1, 0.1], [NAN, NAN], [0.3, 0.3]])
    assert interval(before, after).kind == "95 % t interval over 2 seeds, paired"
    assert interval(before, after) == interval(before[[0, 2]], after[[0, 2]])


@pytest.mark.parametrize(
    ("after", "kind", "n"),
    [
        ([[0.25]], "no interval: one seed and one prompt", 1),
        ([[0.25, 0.25]], "no interval: one seed, all 2 prompts are equal", 2),
        ([[0.25], [0.25], [0.25]], "no interval: all 3 seeds are equal", 3),
        ([[0.25]] * 6, "no interval: all 6 seeds are equal", 6),
    ],
)
def test_without_variation_there_is_no_interval_rather_than_one_of_no_width(after, kind, n):
    got = interval(np.zeros_like(np.array(after)), np.array(after))
    assert (got.mean, got.kind, got.n, got.known) == (0.25, kind, n, False)


def test_rounding_is_not_variation():
    after = np.array([[0.1 + 0.2, 0.0], [0.3, 0.0]])
    assert not interval(np.zeros((2, 2)), after).known


def test_no_valid_score_at_all():
    got = interval(np.full((2, 3), NAN), np.zeros((2, 3)))
    assert (got.kind, got.n, got.known) == ("no valid scores", 0, False)
    assert math.isnan(got.mean)


def test_samples_of_a_prompt_are_averaged_in_pairs():
    before = np.array([[1.0, NAN, 3.0], [NAN, 1.0, 1.0], [2.0, 4.0, 6.0]])
    after = np.array([[2.0, 5.0, NAN], [1.0, NAN, NAN], [3.0, 5.0, 7.0]])
    old, new = per_prompt(before, after)
    np.testing.assert_array_equal(old, [1.0, NAN, 4.0])
    np.testing.assert_array_equal(new, [2.0, NAN, 5.0])


def test_overlap():
    assert overlap(known(0.0, 1.0), known(1.0, 2.0))
    assert overlap(known(0.0, 3.0), known(1.0, 2.0))
    assert not overlap(known(0.0, 0.9), known(1.0, 2.0))
    assert not overlap(known(1.0, 2.0), known(0.0, 0.9))
    assert overlap(known(NAN, NAN), known(1.0, 2.0))
