"""Encoders that do not learn stay as they are; what was corrected for other weights or ranges is forgotten."""

import logging

import pytest
import safetensors.torch
import torch
from torch import nn

import quant
from encoders import init_from, load_encoder, save_encoder
from ssql.commands.finetune import finetune
from ssql.commands.tokenizer import tokenizer
from ssql.finetuning.training import Finetuning
from ssql.methods import SimSiam
from ssql.tokenizing.training import TokenizerTraining

# Warnings are those of Lightning; runs have them on stderr.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("speak_once")]

CONFIG = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_epochs: 1, logger: false, accelerator: cpu}
data:
  class_path: ssql.data.SpokenWords
  init_args: {languages: [en-us], train_size: 40, test_size: 20, batch_size: 16}
validation: 0.2
model: {optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.01}}}
"""
WORDS = {
    finetune: "task: word\ncalibration_batches: 2\n",
    tokenizer: "linguistic_codes: 8\nsemantic_codes: 8\nstart_batches: 2\n",
}


@pytest.fixture(scope="module")
def corrected(pretrained, tmp_path_factory):
    """Folder of an encoder with bias corrections."""
    torch.manual_seed(1)
    encoder = load_encoder(pretrained)
    for bit_width in ("w4a8", "w4a4"):
        quant.correct_bias(encoder, bit_width, [torch.randn(4, 80, 60)])
    folder = tmp_path_factory.mktemp("corrected") / "encoder"
    save_encoder(encoder, folder)
    return folder


@pytest.fixture(scope="module")
def learned(corrected, tmp_path_factory):
    """Folder of an encoder with learned steps and bias corrections."""
    encoder = load_encoder(corrected)
    quant.learn_steps(encoder, "w4a4")
    folder = tmp_path_factory.mktemp("learned") / "encoder"
    save_encoder(encoder, folder)
    return folder


@pytest.fixture
def run(tmp_path):
    def run(command, encoder, *words):
        (tmp_path / "config.yaml").write_text(CONFIG + WORDS[command], encoding="utf-8")
        start = ["--config", str(tmp_path / "config.yaml"), "--encoder", str(encoder)]
        return command([*start, "--output", str(tmp_path / "run"), *words])

    return run


def state(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


FROZEN = [
    *[(finetune, ["--freeze", "true", "--bit_width", bits]) for bits in ("fp", "w4a4", "w4a8", "random")],
    *[(tokenizer, ["--ssql", ssql]) for ssql in ("false", "true")],
]


@pytest.mark.parametrize(("command", "words"), FROZEN)
def test_all_tensors_of_a_frozen_encoder_are_what_they_were(run, corrected, command, words):
    before, after = state(corrected), state(run(command, corrected, *words))
    assert before.keys() == after.keys()
    assert any("bias_correction" in key for key in before)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


@pytest.mark.parametrize(
    ("command", "words"), [(finetune, ["--freeze", "true", "--bit_width", "w4a4"]), (tokenizer, [])]
)
def test_learned_steps_of_a_frozen_encoder_are_what_they_were(run, learned, command, words):
    model = run(command, learned, *words)
    before, after = state(learned), state(model)
    assert before.keys() == after.keys()
    assert [key for key in before if not torch.equal(before[key], after[key])] == []
    assert quant.learned_bit_width(load_encoder(model)) == quant.parse_bit_width("w4a4")


LEARNING = [
    (finetune, ["--bit_width", "fp", "--model.precision.test_at", "[fp, w4a8]"]),
    (finetune, ["--bit_width", "w4a4"]),
    (finetune, ["--bit_width", "random"]),
    (finetune, ["--bit_width", "w4a4", "--quantizer", "lsq"]),
    (tokenizer, ["--freeze", "false"]),
    (tokenizer, ["--freeze", "false", "--ssql", "true"]),
]


@pytest.mark.parametrize(("command", "words"), LEARNING)
def test_an_encoder_that_learns_forgets_its_corrections_before_the_first_step(
    run, corrected, monkeypatch, caplog, command, words
):
    module = Finetuning if command is finetune else TokenizerTraining
    step, seen = module.training_step, []

    def watched(self, batch, batch_idx):
        seen.append(quant.corrected_bit_widths(self.encoder))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(module, "training_step", watched)
    with caplog.at_level(logging.INFO, "ssql.finetuning.precision"):
        model = run(command, corrected, *words)
    assert seen == [[], []]
    assert not [key for key in state(model) if "correction" in key]
    assert "bias corrections at w4a8, w4a4 are dropped, the encoder is going to learn" in caplog.text


def test_learned_steps_that_learn_on_forget_corrections(run, learned):
    model = run(finetune, learned, "--bit_width", "w4a4", "--quantizer", "lsq")
    assert not [key for key in state(model) if "correction" in key]


def test_weights_that_start_a_pretraining_have_no_corrections(corrected):
    method = SimSiam(init_from(str(corrected)), nn.Identity(), dim=8)
    assert quant.corrected_bit_widths(method.encoder) == []
    assert not [key for key in method.state_dict() if "correction" in key]
