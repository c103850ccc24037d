"""One model in several threads at once, each at its own bit-width."""

import asyncio
import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import quant
from quant.recomputation import Moment

INPUTS = torch.linspace(-1, 1, 40).view(5, 8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return quant.prepare(nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4)), quant.Policy(first_layer="w2a32"))


def by_hand(model, bits):
    """Both layers written out: weights of the first at 2 bits, of the second at `bits`, inputs in float."""
    values = INPUTS
    for layer, b in zip(model, (2, bits), strict=True):
        scale = layer.weight.abs().amax(dim=1, keepdim=True) * 2 / (2**b - 1)
        integers = (layer.weight / scale).round().clamp(-(2 ** (b - 1)), 2 ** (b - 1) - 1)
        values = values @ (integers * scale).T + layer.bias
    return values


@pytest.mark.parametrize("reuse", [False, True])
def test_threads_at_different_bit_widths_each_get_their_own(model, reuse):
    start = threading.Barrier(4)
    wrong = []

    def run(bits):
        expected = by_hand(model, bits)
        start.wait()
        for _ in range(50):
            with torch.no_grad(), quant.at(model, f"w{bits}a32", reuse_weights=reuse):
                found = [model(INPUTS) for _ in range(2)]
            wrong.extend(bits for values in found if not torch.allclose(values, expected, atol=1e-6))

    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        full = model(INPUTS)
        list(pool.map(run, (3, 4, 5, 8)))
        assert wrong == []
        assert torch.equal(model(INPUTS), full)
    assert model[0].mode.run.bit_width == quant.FULL_PRECISION


@torch.no_grad()
def test_a_thread_starts_in_full_precision_whatever_the_others_run_at(model):
    full, found = model(INPUTS), []
    with quant.at(model, "w3a32"):
        thread = threading.Thread(target=lambda: found.append(model(INPUTS)))
        thread.start()
        thread.join()
        assert torch.allclose(model(INPUTS), by_hand(model, 3), atol=1e-6)
    # Autograd is on in a new thread.
    assert torch.equal(found[0].detach(), full)


@torch.no_grad()
def test_tasks_of_one_thread_do_not_mix(model):
    async def run(bits):
        with quant.at(model, f"w{bits}a32"):
            await asyncio.sleep(0)
            return model(INPUTS)

    async def both():
        return await asyncio.gather(run(3), run(8))

    for found, bits in zip(asyncio.run(both()), (3, 8), strict=True):
        assert torch.allclose(found, by_hand(model, bits), atol=1e-6)


def test_an_observation_sees_the_passes_of_its_own_thread(model):
    quant.calibrate(model, [INPUTS])
    with quant.observe(model):
        thread = threading.Thread(target=lambda: model(100 * INPUTS))
        thread.start()
        thread.join()
        model(INPUTS)
    assert model[0].activation_max.max() == 1


@torch.no_grad()
def test_a_run_that_ends_in_another_thread_changes_nothing_there(model):
    """A generator that holds a bit-width may be finished by whatever thread collects it."""

    def held():
        with quant.at(model, "w3a32"):
            yield

    waiting = held()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, waiting).result()
        waiting.close()
        gc.collect()
    assert torch.equal(model(INPUTS), copy.deepcopy(model)(INPUTS))
    assert model[0].mode.run.bit_width == quant.FULL_PRECISION


@torch.no_grad()
def test_copies_made_inside_run_on_their_own(model):
    full = model(INPUTS)
    with quant.at(model, "w3a32", reuse_weights=True), quant.at(model, "w4a32"):
        inside = model(INPUTS)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for twin in twins:
        assert torch.equal(twin(INPUTS), full)
        with quant.at(twin, "w4a32"):
            assert torch.equal(twin(INPUTS), inside)
            assert torch.equal(model(INPUTS), full)


def test_the_backward_pass_of_another_thread_is_that_of_the_forward(model):
    with quant.at(model, "w4a32"):
        loss = model(INPUTS).square().sum()
    with quant.at(model, "w4a32"):
        expected = torch.autograd.grad(model(INPUTS).square().sum(), model[0].weight)[0]
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert torch.equal(model[0].weight.grad, expected)


@torch.no_grad()
def test_a_moment_is_run_again_on_another_thread_at_its_bit_width(model):
    """The autograd engine computes blocks again on a thread of its own where a GPU is used."""
    with quant.at(model, "w3a32", reuse_weights=True):
        expected, moment = model(INPUTS), Moment(model)
    found = []

    def run():
        with torch.no_grad(), moment.again():
            found.append(model(INPUTS))
        found.append(model(INPUTS))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1].detach(), model(INPUTS))
