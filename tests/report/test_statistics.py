"""Intervals are Student's."""

import math

import pytest
import scipy.stats

from mlm_lightning.report.metric import Interval, interval, t_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 9, 10, 29, 30, 101, 500])
@pytest.mark.parametrize("share", [0.5, 0.95, 0.999])
def test_the_quantile_is_students(df: int, share: float) -> None:
    assert t_quantile(df, share) == pytest.approx(scipy.stats.t.ppf((1 + share) / 2, df), rel=1e-10)


def test_the_interval_is_scipys() -> None:
    values = [0.98, 1.03, 0.99, 1.11]
    found = interval(values)
    assert found is not None
    low, high = scipy.stats.t.interval(0.95, 3, loc=scipy.stats.tmean(values), scale=scipy.stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half, found.n) == pytest.approx((low, high, 4))


def test_one_value_has_no_interval_and_no_value_none() -> None:
    found = interval([1.5, math.nan])
    assert found is not None
    assert (found.mean, found.n) == (1.5, 1)
    assert math.isnan(found.half)
    assert interval([math.nan, math.inf]) is None
    assert Interval(1.0, 0.1, 2).overlaps(Interval(1.05, math.nan, 1))
    assert not Interval(1.0, 0.01, 2).overlaps(Interval(1.05, math.nan, 1))


def test_numbers_beyond_all_bounds_are_no_error() -> None:
    found = interval([1e308, 1.5e308, -1.7e308])
    assert found is not None
    assert found.n == 3
