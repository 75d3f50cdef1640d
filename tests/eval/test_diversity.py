import math
from itertools import combinations, product

import numpy as np
import pytest
import scipy.stats

from eval.diversity import kid, median_distance, mmd2, spread


def normal(n: int, d: int, *, state: int, shift: float = 0.0) -> np.ndarray:
    return np.asarray(scipy.stats.norm.rvs(size=(n, d), random_state=state)) + shift


def by_pairs(a, b, kernel) -> float:
    """The definition, one pair of samples at a time."""
    same = [math.fsum(kernel(x, y) for x, y in combinations(s, 2)) / math.comb(len(s), 2) for s in (a, b)]
    return sum(same) - 2 * math.fsum(kernel(x, y) for x, y in product(a, b)) / (len(a) * len(b))


def test_kid_is_the_unbiased_cubic_mmd_by_definition():
    a, b = normal(7, 5, state=0), normal(11, 5, state=1, shift=0.4)
    assert kid(a, b) == pytest.approx(by_pairs(a, b, lambda x, y: (float(x @ y) / 5 + 1) ** 3))


def test_mmd2_is_the_unbiased_rbf_mmd_by_definition():
    a, b = normal(7, 5, state=0), normal(11, 5, state=1, shift=0.4)
    expected = by_pairs(a, b, lambda x, y: math.exp(-float(np.sum((x - y) ** 2)) / (2 * 1.7**2)))
    assert mmd2(a, b, 1.7) == pytest.approx(expected)


def test_both_agree_with_torch_fidelity():
    torch = pytest.importorskip("torch")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid", reason="needs the extra: metrics")
    a, b = normal(60, 16, state=0), normal(60, 16, state=1, shift=0.3)
    once = {"kid_subsets": 1, "kid_subset_size": 60, "verbose": False}
    tensors = torch.from_numpy(a), torch.from_numpy(b)
    cubic = metric_kid.kid_features_to_metric(*tensors, **once)
    rbf = metric_kid.kid_features_to_metric(*tensors, **once, kid_kernel="rbf", kid_kernel_rbf_sigma=3.0)
    assert kid(a, b) == pytest.approx(cubic["kernel_inception_distance_mean"], rel=1e-7)
    assert mmd2(a, b, 3.0) == pytest.approx(rbf["kernel_inception_distance_mean"], rel=1e-7)


def test_mmd2_of_shifted_gaussians_is_the_closed_form():
    d, s, shift = 3, 1.5, 0.5
    overlap_of_equals = (s**2 / (s**2 + 2)) ** (d / 2)
    expected = 2 * overlap_of_equals * (1 - math.exp(-d * shift**2 / (2 * (s**2 + 2))))
    got = [mmd2(normal(400, d, state=k), normal(300, d, state=100 + k, shift=shift), s) for k in range(10)]
    assert abs(np.mean(got) - expected) < 4 * np.std(got, ddof=1) / math.sqrt(10)
    assert np.mean(got) == pytest.approx(expected, rel=0.15)


def test_kid_of_shifted_gaussians_is_the_closed_form():
    # In one dimension E k(x, y) = E (xy + 1)^3 = m3(x) m3(y) + 3 m2(x) m2(y) + 3 m1(x) m1(y) + 1, m the raw moments.
    shift = 0.5
    base, moved = np.array([0, 1, 0, 1]), np.array([shift**3 + 3 * shift, shift**2 + 1, shift, 1])
    expected = float(np.array([1, 3, 3, 1]) @ np.square(base - moved))
    got = [kid(normal(400, 1, state=k), normal(300, 1, state=100 + k, shift=shift)) for k in range(20)]
    assert abs(np.mean(got) - expected) < 4 * np.std(got, ddof=1) / math.sqrt(20)


@pytest.mark.parametrize("distance", [kid, lambda a, b: mmd2(a, b, 2.0)])
def test_one_distribution_is_at_distance_zero_on_average_and_below_it_at_times(distance):
    got = np.array([distance(normal(20, 4, state=k), normal(30, 4, state=500 + k)) for k in range(60)])
    assert abs(got.mean()) < 4 * got.std(ddof=1) / math.sqrt(len(got))
    assert got.min() < 0 < got.max()


def test_distances_are_symmetric():
    a, b = normal(7, 5, state=0), normal(11, 5, state=1)
    assert kid(a, b) == pytest.approx(kid(b, a))
    assert mmd2(a, b, 2.0) == pytest.approx(mmd2(b, a, 2.0))


def test_mmd2_does_not_lose_digits_far_from_the_origin():
    a, b = normal(20, 3, state=0), normal(20, 3, state=1, shift=0.5)
    assert mmd2(a + 1e6, b + 1e6, 2.0) == pytest.approx(mmd2(a, b, 2.0), rel=1e-6)


def test_single_precision_features_are_summed_in_double():
    a, b = normal(20, 3, state=0).astype(np.float32), normal(20, 3, state=1).astype(np.float32)
    assert kid(a, b) == kid(a.astype(np.float64), b.astype(np.float64))


def test_median_distance():
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == pytest.approx(2.0)
    assert median_distance(np.array([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5.0)


def test_failed_features_are_not_hidden():
    a, b = normal(5, 2, state=0), normal(5, 2, state=1)
    a[0] = math.nan
    assert math.isnan(kid(a, b))
    assert math.isnan(mmd2(a, b, 1.0))


def test_what_has_no_distance_is_refused():
    one, two = np.zeros((1, 3)), np.zeros((2, 3))
    with pytest.raises(ValueError, match="two or more"):
        kid(one, two)
    with pytest.raises(ValueError, match="two or more"):
        median_distance(one)
    with pytest.raises(ValueError, match="bandwidth"):
        mmd2(two, two, median_distance(two))


def test_spread_is_the_mean_distance_of_pairs_within_a_group():
    a = normal(7, 5, state=0)
    group = np.array([0, 1, 0, 1, 1, 0, 0])
    means = []
    for of in (0, 1):
        members = [a[i] for i in range(7) if group[i] == of]
        means.append(np.mean([math.dist(x, y) for x, y in combinations(members, 2)]))
    assert spread(a, group) == pytest.approx(np.mean(means))


def test_spread_does_not_see_the_distance_between_groups():
    a, group = normal(6, 4, state=0), np.array([0, 0, 0, 1, 1, 1])
    assert spread(a + 100.0 * group[:, None], group) == pytest.approx(spread(a, group))


def test_a_group_of_one_has_no_spread():
    with pytest.raises(ValueError, match="two or more"):
        spread(normal(3, 4, state=0), np.array([0, 0, 1]))
