import math

import pytest

from quant.checks import check_above, check_at_least, check_share


def test_right_numbers_and_none_pass():
    check_at_least(1, depth=1, width=64, adaptor_dim=None)
    check_at_least(0, lr=0.0, threads=[0, 2], seconds=[])
    check_above(0, std=1e-9, window=None)
    check_share(mask=0, crop=1.0)


@pytest.mark.parametrize("value", [0, -1, 0.5, math.nan, math.inf, -math.inf])
def test_wrong_numbers_are_named(value):
    with pytest.raises(ValueError, match=f"^depth must be 1 or more, got {value}$"):
        check_at_least(1, width=1, depth=value)


def test_one_wrong_number_among_several_is_named():
    with pytest.raises(ValueError, match="^batches must be 1 or more, got 0$"):
        check_at_least(1, batches=[8, 0])


@pytest.mark.parametrize("value", [0, -2.0, math.nan, math.inf])
def test_the_bound_itself_is_not_above_it(value):
    with pytest.raises(ValueError, match=f"^std must be above 0, got {value}$"):
        check_above(0, std=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_no_share(value):
    with pytest.raises(ValueError, match=f"^crop must be from 0 to 1, got {value}$"):
        check_share(crop=value)
