import math

import pytest
import torch
from torch import nn

from ssql.training.schedule import check_ends, scheduled, warmup_cosine


def rates(warmup, total, steps, lr=2.0):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr)
    schedule = warmup_cosine(optimizer, warmup, total)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_rate_rises_falls_to_zero_and_stays_there():
    found = rates(2, 8, 20)
    expected = [1.0, 2.0, *(1 + math.cos(math.pi * step / 8) for step in range(2, 8)), *[0.0] * 12]
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("name", "value"), [("lr", -1e-3), ("lr", math.nan), ("lr", math.inf), ("weight_decay", -1)])
def test_rates_that_nobody_means(name, value):
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "name": "head"}], 0.1)
    optimizer.param_groups[0][name] = value
    with pytest.raises(ValueError, match=f"the optimizer's {name} of the group head must be 0 or more, got {value:g}"):
        scheduled(optimizer, 0, 10)


def test_a_run_ends_by_steps_or_by_epochs():
    check_ends(10, -1)
    check_ends(-1, 3)
    check_ends(-1, None)  # Lightning's 1,000 epochs
    with pytest.raises(ValueError, match="last step is not known"):
        check_ends(-1, -1)
