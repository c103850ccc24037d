"""Every speech encoder: padding is invisible, it is saved, takes an SSQL step, and goes to ONNX at int8 and int4."""

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from written import to_file

import export
import quant
from encoders import ENCODERS, FrameEncoder, load_encoder, save_encoder
from ssql.augment import SpeechAugmentation
from ssql.methods import SimSiam

WAVEFORMS = {"width": 32, "heads": 2, "extractor_width": 32, "position_kernel": 16, "position_groups": 4}
# The published Base networks: a group norm over time, norms after the blocks.
BASE = {"extractor_norm": "group", "extractor_bias": False, "norm_first": False, "normalize_epsilon": None}
FAMILIES = {
    "speech_transformer": {"width": 32, "depth": 2, "heads": 2},
    "wav2vec2": WAVEFORMS | {"depth": 1},
    "hubert": WAVEFORMS | BASE | {"depth": 1},
    "wavlm": WAVEFORMS | {"depth": 2},
    "conformer": {"width": 32, "depth": 2, "heads": 2, "kernel": 7},
    "streaming_transformer": {"width": 32, "depth": 2, "heads": 2, "chunk": 8, "left_chunks": 2},
    "mel_cnn": {"model_name": "lcnet_035"},
}


def build(name: str) -> FrameEncoder:
    """The family's encoder with weights, norms and statistics away from their initial values."""
    torch.manual_seed(0)
    encoder = ENCODERS[name](**FAMILIES[name]).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.LayerNorm | torch.nn.GroupNorm):
                module.bias += 0.3 * torch.randn(module.bias.shape, generator=generator)
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean += 0.3 * torch.randn(module.bias.shape, generator=generator)
    return encoder


def clips() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(samples, generator=generator) * 0.1 for samples in (12_345, 16_000, 5_000)]


def batch_of(clips: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return pad_sequence(clips, batch_first=True), torch.tensor([len(clip) for clip in clips])


def calibrated(encoder: FrameEncoder) -> FrameEncoder:
    inputs, lengths = encoder.front_end(*batch_of(clips()))
    quant.prepare(encoder)
    quant.calibrate(encoder, [None], lambda _: encoder(inputs, lengths))
    return encoder


def test_every_speech_encoder_is_tested():
    assert set(FAMILIES) == {name for name, encoder in ENCODERS.items() if issubclass(encoder, FrameEncoder)}


@pytest.mark.parametrize("bit_width", ["fp", "w4a8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_invisible(name, bit_width):
    encoder = calibrated(build(name))
    with torch.no_grad(), quant.at(encoder, bit_width):
        together, lengths = encoder(*encoder.front_end(*batch_of(clips())))
        for n, clip in enumerate(clips()):
            alone, length = encoder(*encoder.front_end(clip.unsqueeze(0)))
            assert lengths[n] == length[0] == alone.shape[1]
            found, expected = together[n, : lengths[n]].flatten(), alone[0].flatten()
            if bit_width == "fp":
                assert torch.allclose(found, expected, atol=1e-4 * float(alone.abs().max()))
            # A value at the edge of two integers falls to either with another order of summation.
            assert torch.nn.functional.cosine_similarity(found, expected, dim=0) > 0.9999
            assert not together[n, lengths[n] :].any()


@pytest.mark.parametrize("name", FAMILIES)
def test_ranges_ignore_padding(name):
    encoder = build(name)
    quant.prepare(encoder)
    inputs, lengths = encoder.front_end(*batch_of(clips()[:1]))
    ranges = []
    for padding in (0, 4_800):
        padded = torch.nn.functional.pad(inputs, (0, padding))
        quant.calibrate(encoder, [padded], lambda batch: encoder(batch, lengths))
        ranges.append(torch.stack([layer.activation_max for layer in quant.quant_layers(encoder).values()]))
    assert torch.allclose(*ranges, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_saved_and_takes_an_ssql_step(name, tmp_path):
    encoder = calibrated(build(name))
    save_encoder(encoder, tmp_path / "encoder")
    again = load_encoder(tmp_path / "encoder")
    inputs = encoder.front_end(*batch_of(clips()))
    with torch.no_grad(), quant.at(encoder, "w4a8"), quant.at(again, "w4a8"):
        assert torch.equal(again(*inputs)[0], encoder(*inputs)[0])

    method = SimSiam(quant.unprepare(again).train(), SpeechAugmentation(), dim=32)
    method.log = method.log_dict = lambda *_, **__: None
    waveforms, lengths = batch_of(clips())
    method.training_step({"inputs": waveforms, "lengths": lengths}, 0).backward()
    silent = [key for key, weight in method.encoder.named_parameters() if weight.grad is None]
    assert silent == []
    assert all(weight.grad.isfinite().all() for weight in method.encoder.parameters())


# WavLM, which has all that the others of waveforms have, in published/test_wav2vec2.py.
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"wav2vec2", "hubert", "wavlm"}))
def test_its_files_agree_with_torch(name, tmp_path):
    bit_width = "w4a8"
    encoder = calibrated(build(name))
    path = to_file(encoder, tmp_path / "encoder.onnx", bit_width, check=False)
    result = export.verify(path, encoder, bit_width, clips=clips())
    assert result.passed, result
    operators = export.integer_operators(path)
    assert operators.get("MatMulIntegerToFloat", 0) + operators.get("QLinearConv", 0) >= (2 if name == "mel_cnn" else 6)
