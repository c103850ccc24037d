import pytest
import torch

import quant
from encoders import FilledLogMel, SpeechTransformer
from encoders.speech.windows import limits


def small(**arguments) -> SpeechTransformer:
    torch.manual_seed(0)
    return SpeechTransformer(width=32, depth=2, heads=2, **arguments).eval()


@pytest.mark.parametrize(
    ("arguments", "rate", "frames", "dim"),
    [({}, 50, 50, 32), ({"pooling": 2}, 25, 25, 32), ({"pooling": 2, "adaptor_dim": 48}, 12.5, 13, 48)],
)
def test_one_second_at_each_frame_rate(arguments, rate, frames, dim):
    encoder = small(**arguments)
    features, lengths = encoder(*encoder.front_end(torch.randn(2, 16_000)))
    assert encoder.frame_rate == rate
    assert features.shape == (2, frames, dim)
    assert lengths.tolist() == [frames, frames]


def test_step_audio_lengths():
    """Mel frames T to ((T + 1) // 2) // 2 at 25 Hz, as the Step-Audio 2 encoder has it."""
    encoder = small(pooling=2)
    for frames in (4, 5, 6, 7, 99, 100, 101):
        features, lengths = encoder(torch.randn(1, 80, frames))
        assert features.shape[1] == lengths[0] == ((frames + 1) // 2) // 2


@pytest.mark.parametrize("arguments", [{}, {"pooling": 2}, {"pooling": 2, "adaptor_dim": 48}])
@pytest.mark.parametrize("bit_width", ["fp", "w4a8"])
def test_neighbours_and_padding_do_not_change_features(arguments, bit_width):
    encoder = quant.prepare(small(**arguments))
    waveform = torch.randn(3, 16_000) * 0.1
    samples = torch.tensor([16_000, 9_111, 4_000])
    for clip, length in zip(waveform, samples, strict=True):
        clip[length:] = 0
    mel, frames = encoder.front_end(waveform, samples)
    quant.calibrate(encoder, [None], lambda _: encoder(mel, frames))
    with torch.no_grad(), quant.at(encoder, bit_width):
        together, lengths = encoder(mel, frames)
        pooled = encoder.embed(mel, frames)
        for i in range(3):
            alone_mel, alone_frames = encoder.front_end(waveform[i : i + 1, : samples[i]])
            alone, _ = encoder(alone_mel, alone_frames)
            assert torch.allclose(together[i, : lengths[i]], alone[0], atol=2e-5)
            assert torch.equal(together[i, lengths[i] :], torch.zeros_like(together[i, lengths[i] :]))
            assert torch.allclose(pooled[i], encoder.embed(alone_mel, alone_frames)[0], atol=2e-5)


def test_calibration_ignores_padding():
    encoder = quant.prepare(small())
    mel, frames = encoder.front_end(torch.randn(1, 8_000))
    ranges = []
    for padding in (0, 300):
        padded = torch.nn.functional.pad(mel, (0, padding))
        quant.calibrate(encoder, [padded], lambda batch: encoder(batch, frames))
        ranges.append(torch.stack([layer.activation_max for layer in quant.quant_layers(encoder).values()]))
    assert torch.allclose(*ranges, atol=1e-5)


def test_wrong_shapes_and_sizes_are_errors():
    with pytest.raises(ValueError, match=r"log_mel must be \(batch, 80, frames\), got shape \(1, 128, 50\)"):
        small()(torch.zeros(1, 128, 50))
    with pytest.raises(ValueError, match="shorter than one frame at 25.0 Hz"):
        small(pooling=2)(torch.zeros(1, 80, 2))
    with pytest.raises(ValueError, match="divisible by heads 5"):
        SpeechTransformer(width=192, heads=5)
    with pytest.raises(ValueError, match="needs pooling 2"):
        SpeechTransformer(adaptor_dim=64)


@pytest.mark.parametrize("log_mel", ["causal", "whisper", "whisper_filled"])
def test_a_clip_of_all_positions_is_taken_and_no_longer_one(log_mel):
    encoder = small(positions=60, log_mel=log_mel).eval()
    longest, _ = limits(encoder.arguments, encoder.frame_rate)
    assert longest == 60 * 320
    with torch.no_grad():
        _, lengths = encoder(*encoder.front_end(torch.randn(1, longest)))
        assert lengths.tolist() == [60]
        with pytest.raises(ValueError, match=r"is longer than the .*1\.2 s.*: cut it into windows"):
            encoder(*encoder.front_end(torch.randn(1, longest + 320)))


def test_a_filled_clip_attends_to_its_silence_and_to_nothing_else():
    encoder = small(positions=60, log_mel="whisper_filled").eval()
    clips = torch.nn.functional.pad(torch.randn(1, 8_000), (0, 4_000)), torch.randn(1, 12_000)
    with torch.no_grad():
        together, lengths = encoder(*encoder.front_end(torch.cat(clips), torch.tensor([8_000, 12_000])))
        alone, _ = encoder(*encoder.front_end(clips[0][:, :8_000]))
        by_hand, _ = encoder(*encoder.front_end(torch.nn.functional.pad(clips[0], (0, 7_200))))
        own = small(positions=60, log_mel="whisper").eval()
        own.load_state_dict(encoder.state_dict())
        unfilled, _ = own(*own.front_end(clips[0][:, :8_000]))
    assert lengths.tolist() == [60, 60]
    assert torch.allclose(together[:1], alone, atol=2e-5)
    assert torch.equal(by_hand, alone)
    assert not torch.allclose(alone[:, :25], unfilled[:, :25], atol=1e-2)
    with pytest.raises(ValueError, match="log-mels of filled clips have exactly 120 frames .* got 100"):
        encoder(torch.zeros(1, 80, 100))
    with pytest.raises(ValueError, match="log_mel whisper_filled fills clips to all positions: give positions"):
        small(log_mel="whisper_filled")


def test_a_margin_of_silence_is_a_shorter_window():
    """A clip of 0.5 s with 0.2 s of silence is one of 0.7 s in an encoder that takes all of it for real."""
    encoder = small(positions=60, log_mel="whisper_filled", margin=0.2).eval()
    clip, loud = 0.3 * torch.randn(1, 8_000), torch.randn(1, 12_000)
    own = small(positions=60, log_mel="causal").eval()
    own.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        alone, lengths = encoder(*encoder.front_end(clip))
        assert lengths.tolist() == [35]
        silent = torch.nn.functional.pad(clip, (0, 11_200))
        whole, _ = FilledLogMel(80, 19_200)(silent)
        assert torch.allclose(alone, own(whole[:, :, :70])[0], atol=2e-5)
        both = torch.cat([torch.nn.functional.pad(clip, (0, 4_000)), loud])
        together, lengths = encoder(*encoder.front_end(both, torch.tensor([8_000, 12_000])))
        assert lengths.tolist() == [35, 48] and not together[0, 35:].any()
        assert torch.allclose(together[:1, :35], alone, atol=2e-5)
        encoder.fill(None)
        assert encoder(*encoder.front_end(clip))[1].tolist() == [60]
    assert encoder.arguments == small(positions=60, log_mel="whisper_filled").arguments
    with pytest.raises(ValueError, match="a margin of silence needs clips that are filled, .*, not causal"):
        small(positions=60, margin=0.2)
