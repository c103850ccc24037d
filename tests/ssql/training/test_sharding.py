"""What needs no second process; the rest is in methods/test_distributed.py."""

import bitsandbytes
import pytest
import torch
from lightning import Trainer
from torch import nn

import quant
from encoders import SpeechTransformer
from ssql.augment import SpeechAugmentation
from ssql.methods import BYOL, MaskedPrediction
from ssql.training.sharding import FSDP2, check_knows_shards, gathered_encoder, units


def encoder():
    return SpeechTransformer(width=16, depth=1, heads=2)


def test_units_hold_every_parameter_of_a_method_once():
    for method in (BYOL(encoder(), SpeechAugmentation(), dim=16), MaskedPrediction(encoder(), SpeechAugmentation())):
        found = [parameter for unit in units(method) for parameter in unit.parameters()]
        assert {id(parameter) for parameter in found} == {id(parameter) for parameter in method.parameters()}
        assert len(found) == len(list(method.parameters()))


def test_a_parameter_that_no_forward_pass_would_gather_is_an_error():
    model = nn.Sequential(encoder())
    model.scale = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="Sequential has Parameters of its own beside an encoder, scale"):
        units(model)


def test_an_encoder_that_is_not_sharded_is_gathered_already():
    whole = quant.prepare(encoder())
    assert gathered_encoder(whole) is whole


@pytest.mark.filterwarnings("ignore")
def test_an_optimizer_of_whole_weights_is_an_error():
    parameters = [nn.Parameter(torch.ones(1))]
    check_knows_shards(torch.optim.AdamW(parameters))
    with pytest.raises(ValueError, match="AdamW8bit does not know sharded weights: .* AdamW"):
        check_knows_shards(bitsandbytes.optim.AdamW8bit(parameters))


@pytest.mark.filterwarnings("ignore")
def test_the_strategy_has_a_name():
    trainer = Trainer(strategy="fsdp2", accelerator="cpu", devices=2, logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy, FSDP2)
