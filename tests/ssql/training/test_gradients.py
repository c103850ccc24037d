import torch
from torch import nn

from ssql.training.gradients import differentiated_now


def test_gradients_wait_and_take_part_in_all_that_comes_later():
    model, other = nn.Linear(3, 1), nn.Linear(3, 1)
    x = torch.randn(5, 3)
    loss = differentiated_now(model(x).square().mean(), [*model.parameters(), *other.parameters()])
    assert model.weight.grad is None
    ((loss + model(x).mean()) / 3).backward()
    gradient = model.weight.grad.clone()
    model.zero_grad()
    ((model(x).square().mean() + model(x).mean()) / 3).backward()
    assert torch.allclose(gradient, model.weight.grad)
    assert other.weight.grad is None


def test_parameters_that_share_a_gradient_or_get_an_expanded_one():
    a, b, c = (nn.Parameter(torch.randn(4)) for _ in range(3))
    loss = differentiated_now((a + b).square().sum() + c.sum(), [a, b, c])
    (loss / 2).backward()
    assert torch.allclose(a.grad, (a + b).detach())
    assert torch.allclose(b.grad, (a + b).detach())
    assert torch.equal(c.grad, torch.full((4,), 0.5))
