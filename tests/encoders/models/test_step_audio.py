import pytest
import torch

from encoders import WhisperLogMel, step_audio_2


def test_one_second_is_13_features_and_25_seconds_are_313():
    encoder = step_audio_2("base").eval()
    encoder.blocks = encoder.blocks[:1]
    for seconds, tokens in ((1, 13), (25, 313)):
        with torch.no_grad():
            features, lengths = encoder(*encoder.front_end(torch.randn(1, seconds * 16_000)))
        assert lengths.tolist() == [tokens]
        assert features.shape[2] == 4096


def test_the_released_size_has_the_published_number_of_parameters():
    """By hand, for width d = 1280, 32 blocks, 128 mels, 1500 positions, language model of 3584.

    conv1: 3 * 128 * d + d; conv2: 3 * d * d + d; positions: 1500 * d; last norm: 2 * d.
    A block: query, key, value, out of d * d and three biases (key has none); two norms of 2 * d;
    an MLP of 2 * 4 * d * d with biases of 4 * d and d: 12 * d * d + 12 * d.
    Adaptor: 3 * d * d + d; d * 2048 + 2048; 2048 * 3584 + 3584.
    """
    d = 1280
    encoder_parameters = (3 * 128 * d + d) + (3 * d * d + d) + 1500 * d + 32 * (12 * d * d + 12 * d) + 2 * d
    adaptor_parameters = (3 * d * d + d) + (d * 2048 + 2048) + (2048 * 3584 + 3584)
    assert (encoder_parameters, adaptor_parameters) == (636_968_960, 14_883_584)
    with torch.device("meta"):
        encoder = step_audio_2("mini")
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in encoder.named_children() if module}
    assert counts.pop("adaptor") == adaptor_parameters
    assert sum(counts.values()) == encoder_parameters
    assert next(encoder.parameters()).is_meta


@pytest.mark.parametrize("samples", [[16_000, 9_111], [14_560, 14_401], [16_000, 15_999]])
def test_padding_is_invisible_with_lookahead_and_adaptor(samples):
    torch.manual_seed(0)
    encoder = step_audio_2("tiny", log_mel="whisper").eval()
    clips = [torch.randn(n) * 0.1 for n in samples]
    batch = torch.nn.utils.rnn.pad_sequence([*clips, torch.randn(20_000)], batch_first=True)
    with torch.no_grad():
        together, lengths = encoder(*encoder.front_end(batch, torch.tensor([*samples, 20_000])))
        for n, clip in enumerate(clips):
            alone, length = encoder(*encoder.front_end(clip.unsqueeze(0)))
            assert lengths[n] == length[0]
            assert torch.allclose(together[n, : lengths[n]], alone[0, : length[0]], atol=2e-5)
            assert not together[n, lengths[n] :].any()


def test_too_long_a_clip_and_unknown_sizes_are_errors():
    encoder = step_audio_2("tiny").eval()
    with pytest.raises(ValueError, match=r"clip of 30\.01 s is longer than the encoder's positions, 30 s"):
        encoder(torch.zeros(1, 128, 3003))
    with torch.no_grad():
        assert encoder(torch.zeros(1, 128, 3002))[1].tolist() == [750]
    with pytest.raises(ValueError, match="unknown size 'huge'"):
        step_audio_2("huge")
    assert isinstance(encoder.front_end, WhisperLogMel)
