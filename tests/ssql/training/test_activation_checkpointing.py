"""Checkpointed blocks: the numbers of a step without them, and fewer kept bytes."""

import copy

import pytest
import safetensors.torch
import torch
from torch import nn

import quant
from encoders import Conformer, MelCNN, SpeechTransformer, StreamingTransformer, VisionEncoder, Wav2Vec2
from ssql.commands.pretrain import pretrain
from ssql.data import Digits
from ssql.finetuning.precision import Precision
from ssql.finetuning.training import Finetuning
from ssql.methods import BYOL, Distillation, MaskedPrediction, SimSiam, SSQLOptions
from ssql.training.activation_checkpointing import blocks_of, checkpoint_activations

GRIDS = quant.Policy(shift=True, attention=True, weight_range="mse")
# Not the default of zeros for the last scale of a block: nothing inside would have a gradient.
SMALL_RESNET = {"stem_width": 8, "channels": [8, 16, 24, 32], "drop_path_rate": 0.2, "zero_init_last": False}
ENCODERS = {
    "resnet": lambda: VisionEncoder("resnet10t", 1, model_arguments=SMALL_RESNET),
    "mobilenet": lambda: VisionEncoder("mobilenetv2_035", 1),
    "transformer": lambda: SpeechTransformer(width=16, depth=2, heads=2),
    "streaming": lambda: StreamingTransformer(width=16, depth=2, heads=2, chunk=4),
    "conformer": lambda: Conformer(width=16, depth=2, heads=2, kernel=3),
    "wav2vec2": lambda: Wav2Vec2(width=16, depth=2, heads=2, extractor_width=8, position_kernel=4, position_groups=2),
    "mel_cnn": lambda: MelCNN("mobilenetv3_small_050"),
}
IMAGES = ("resnet", "mobilenet")


class Fixed(nn.Module):
    """The same two views, the second quieter, in turns."""

    def __init__(self, inputs, lengths):
        super().__init__()
        self.inputs, self.lengths, self.calls = inputs, lengths, 0

    def forward(self, inputs, lengths, encoder):
        self.calls += 1
        return encoder.front_end(self.inputs / (1 + self.calls % 2), self.lengths)


def build(name, method=SimSiam, **arguments):
    torch.manual_seed(0)
    encoder = ENCODERS[name]()
    clips = torch.randn(4, 4000), torch.tensor([4000, 3600, 2400, 1600])
    inputs, lengths = (torch.rand(8, 1, 32, 32), None) if name in IMAGES else clips
    sizes = {} if method in (MaskedPrediction, Distillation) else {"dim": 16}
    model = method(encoder, Fixed(inputs, lengths), **(sizes | arguments))
    model.log = model.log_dict = lambda *_, **__: None
    return model


def step(model, dtype=torch.float32):
    """Loss, gradients, and everything a step leaves in the model: ranges, running statistics and their count."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model.training_step({"inputs": None, "lengths": None}, 0)
    loss.backward()
    return {"loss": loss.detach()} | gradients(model) | model.state_dict()


def gradients(model):
    return {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("views", ["together", "apart"])
@pytest.mark.parametrize(
    "ssql",
    [False, SSQLOptions(), SSQLOptions(sequential=False, observer="mse"), SSQLOptions(targets="quantized")],
    ids=["plain", "sequential", "whole", "reversed"],
)
@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_a_step_has_the_same_loss_gradients_ranges_and_statistics(name, ssql, views):
    policy = GRIDS if name == "transformer" else None
    kept, recomputed = (build(name, ssql=ssql, views=views, policy=policy, seed=3) for _ in range(2))
    checkpoint_activations(recomputed.encoder)
    assert_same(step(recomputed), step(kept))


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_can_be_checkpointed(name):
    kept, recomputed = (build(name) for _ in range(2))
    checkpoint_activations(recomputed.encoder)
    assert_same(step(recomputed), step(kept))


@pytest.mark.parametrize("method", [BYOL, MaskedPrediction, Distillation])
def test_other_methods_and_bfloat16(method):
    kept, recomputed = (build("transformer", method) for _ in range(2))
    checkpoint_activations(recomputed.encoder)
    assert_same(step(recomputed, torch.bfloat16), step(kept, torch.bfloat16))


@pytest.mark.parametrize("precision", [Precision("w4a4"), Precision("w4a4", "lsq"), Precision("random")], ids=str)
def test_fine_tuning_at_bits_whose_ranges_move_within_the_step(precision):
    data, results = Digits(batch_size=16), []
    batch = next(iter(data.train_dataloader()))
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Finetuning(ENCODERS["resnet"](), "class", precision)
        if recompute:
            checkpoint_activations(model.encoder)
        model.start(data, 1)
        model.log = lambda *_, **__: None
        torch.manual_seed(1)
        loss = model.training_step(batch, 0)
        loss.backward()
        results.append(gradients(model) | model.state_dict() | {"loss": loss})
    assert_same(*results)


def kept_bytes(model):
    """Bytes that autograd keeps for the backward pass of a step, each tensor once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.training_step({"inputs": None, "lengths": None}, 0)
    loss.backward()
    return sum(kept.values())


@pytest.mark.parametrize("sequential", [True, False])
def test_less_is_kept(sequential):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        encoder = SpeechTransformer(width=32, depth=8, heads=2)
        model = SimSiam(encoder, Fixed(torch.randn(8, 16_000), None), SSQLOptions(sequential=sequential), dim=16)
        model.log = model.log_dict = lambda *_, **__: None
        if recompute:
            checkpoint_activations(encoder)
        results.append(kept_bytes(model))
    assert results[1] < results[0] / 3


def test_blocks_are_those_of_the_outermost_chains():
    names = {
        name: [type(block).__name__ for block in blocks_of(ENCODERS[name]())]
        for name in ("resnet", "transformer", "wav2vec2")
    }
    assert names["resnet"] == ["BasicBlock"] * 4
    assert names["transformer"] == ["Block"] * 2
    assert names["wav2vec2"] == ["ConvLayerBlock"] * 7 + ["EncoderLayer"] * 2
    assert len(blocks_of(ENCODERS["mobilenet"]())) == 17
    with pytest.raises(ValueError, match="Sequential has no chain of blocks"):
        checkpoint_activations(nn.Sequential(nn.Linear(2, 2)))


def test_a_copy_is_checkpointed_and_evaluation_is_not(tmp_path):
    encoder = ENCODERS["transformer"]()
    expected = encoder.eval()(torch.ones(1, 80, 20))[0]
    checkpoint_activations(encoder)
    assert list(encoder.state_dict()) == list(ENCODERS["transformer"]().state_dict())
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(torch.ones(1, 80, 20))[0], expected)
    assert twin.blocks[0].training is False
    assert type(twin.blocks[0]) is type(encoder.blocks[0])


PRETRAINING = """
trainer: {enable_progress_bar: false, enable_model_summary: false, max_steps: 2, logger: false, accelerator: cpu}
model:
  class_path: SimSiam
  init_args:
    encoder: {class_path: encoders.VisionEncoder, init_args: {model_name: resnet10t, in_channels: 1}}
    augmentation: {class_path: ssql.augment.ImageAugmentation, init_args: {image_size: 8, flip: false, colour: false}}
    dim: 16
data: {class_path: ssql.data.Digits, init_args: {batch_size: 16}}
calibration_batches: 1
"""


@pytest.mark.filterwarnings("ignore")
def test_pretraining_leaves_the_same_encoder(tmp_path):
    (tmp_path / "config.yaml").write_text(PRETRAINING)
    saved = []
    for words in (["--activation_checkpointing", "true"], []):
        folder = tmp_path / f"run{len(saved)}"
        pretrain(["--config", str(tmp_path / "config.yaml"), "--output", str(folder), *words])
        saved.append(safetensors.torch.load_file(folder / "encoder" / "model.safetensors"))
    assert_same(*saved)
