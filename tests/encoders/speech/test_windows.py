import itertools
import tracemalloc

import numpy as np
import pytest
import torch

import quant
from encoders import (
    ENCODERS,
    FrameEncoder,
    MelCNN,
    SpeechTransformer,
    StreamingTransformer,
    WindowEncoder,
    encode_windows,
    step_audio_2,
    window_encoder,
)

SMALL = {"width": 32, "depth": 1, "heads": 2}
WAVEFORMS = SMALL | {"extractor_width": 32, "position_kernel": 16, "position_groups": 4}
FAMILIES = {
    "speech_transformer": [SMALL, SMALL | {"pooling": 2, "adaptor_dim": 24, "positions": 1500, "log_mel": "whisper"}],
    "streaming_transformer": [SMALL | {"chunk": 8, "left_chunks": 2, "pooling": 2}],
    "conformer": [SMALL | {"kernel": 7}],
    "mel_cnn": [{"model_name": "lcnet_035"}, {"model_name": "lcnet_035", "time_stride": 32}],
    "wav2vec2": [WAVEFORMS],
    "hubert": [WAVEFORMS],
    "wavlm": [WAVEFORMS | {"depth": 2}],
}
FRAME = 320  # samples of the encoder below


def noise(samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) * 0.1).astype(np.float32)


def split(samples: np.ndarray, longest: int = 30_000) -> list[np.ndarray]:
    """Blocks of random lengths, some of them empty."""
    generator, blocks, position = np.random.default_rng(1), [], 0
    while position < len(samples):
        count = int(generator.integers(0, longest))
        blocks.append(samples[position : position + count])
        position += count
    return blocks


def joined(pieces) -> np.ndarray:
    return np.concatenate([piece.features for piece in pieces])


def whole(encoder: FrameEncoder, samples: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        features, lengths = encoder(*encoder.front_end(torch.from_numpy(samples)[None]))
    return features[0, : lengths[0]].numpy()


def counting(seen: list | None = None, missing: int = 0) -> WindowEncoder:
    """One feature for each 320 samples: the first sample there, and how far the frame is from the window's ends."""

    def encode(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if seen is not None:
            seen.append(lengths.tolist())
        frames = lengths // FRAME - missing
        place = np.arange(frames.max())
        features = np.stack(
            [waveforms[:, ::FRAME][:, : len(place)], np.broadcast_to(place, (len(frames), len(place)))], 2
        )
        after = frames[:, None] - 1 - features[:, :, 1]
        return np.concatenate([features, after[:, :, None]], axis=2), frames

    return WindowEncoder(encode, 50.0, 3, None, FRAME)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize(("window", "overlap"), [(1.0, 0.0), (1.0, 0.2), (1.0, 0.9), (0.7, 0.25), (2.013, 0.001)])
def test_no_frame_is_lost_doubled_or_shifted_and_middles_win(window, overlap, batch_size):
    for total in [*range(319, 70_000, 7_779), 16_000, 16_001, 28_800, 32_000]:
        samples = np.arange(total, dtype=np.float32)
        pieces = list(encode_windows(counting(), split(samples), window, overlap, batch_size))
        if total < 400:
            assert pieces == []
            continue
        features = joined(pieces)
        assert np.array_equal(features[:, 0], np.arange(total // FRAME) * FRAME)
        half = int(np.ceil(overlap * 50)) // 2
        first, *others = pieces
        assert all(piece.features[:, 1].min() >= half for piece in others)
        assert all(piece.features[:, 2].min() >= half for piece in pieces[:-1])
        assert first.features[0, 1] == 0


def test_all_windows_are_full_and_the_last_ends_with_the_audio():
    seen: list = []
    total = 50_123
    list(encode_windows(counting(seen), [noise(total)], 1.0, 0.2))
    *full, last = itertools.chain(*seen)
    assert full == [16_000] * 3
    # It starts on the grid: the first multiple of 320 from which 16,000 samples reach the end.
    assert last == total - (50_123 - 16_000 + 319) // 320 * 320


def test_every_speech_encoder_is_tested():
    assert set(FAMILIES) == {name for name, encoder in ENCODERS.items() if issubclass(encoder, FrameEncoder)}


@pytest.mark.parametrize(("name", "arguments"), [(name, a) for name, variants in FAMILIES.items() for a in variants])
def test_as_many_frames_as_the_encoder_gives_for_the_whole(name, arguments):
    torch.manual_seed(0)
    encoder = ENCODERS[name](**arguments).eval()
    for total in (9_000, 37_777, 50_080, 66_239, 66_240):
        samples = noise(total)
        pieces = list(encode_windows(window_encoder(encoder), split(samples), window=1.6, overlap=0.7, batch_size=2))
        expected = whole(encoder, samples)
        features = joined(pieces) if pieces else expected[:0]
        assert features.shape == expected.shape
        # In one window they are the encoder's own.
        assert total > 25_600 or np.allclose(features, expected, atol=1e-4 * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("bit_width", ["fp", "w8a8"])
def test_stitched_streaming_features_are_those_of_the_whole(bit_width):
    """Each of two blocks sees 2 chunks of 160 ms before its own: 0.8 s; half the overlap is more."""
    torch.manual_seed(0)
    encoder = quant.prepare(StreamingTransformer(width=32, depth=2, heads=2, chunk=8, left_chunks=2).eval())
    samples = noise(163_333)
    quant.calibrate(encoder, [encoder.front_end(torch.from_numpy(samples)[None])], lambda batch: encoder(*batch))
    with quant.at(encoder, bit_width):
        pieces = list(encode_windows(window_encoder(encoder), split(samples), window=4.0, overlap=2.0))
        features, expected = joined(pieces), whole(encoder, samples)
    assert len(pieces) > 3
    if bit_width == "fp":
        assert np.allclose(features, expected, atol=1e-4 * np.abs(expected).max())
        assert all(piece.seam < 1e-4 for piece in pieces[:-1])
    # A value at the edge of two integers falls to either with another order of summation.
    norms = np.linalg.norm(features, axis=1) * np.linalg.norm(expected, axis=1)
    assert ((features * expected).sum(axis=1) / norms).min() > 0.999


def test_stitched_convolutional_features_are_those_of_the_whole():
    torch.manual_seed(0)
    encoder = MelCNN("mobilenetv2_050", time_stride=2, model_arguments={"depth_multiplier": 0.5}).eval()
    samples = noise(163_333)
    pieces = list(encode_windows(window_encoder(encoder), split(samples), window=5.0, overlap=2.4))
    features, expected = joined(pieces), whole(encoder, samples)
    assert len(pieces) > 3
    assert np.allclose(features, expected, atol=1e-4 * np.abs(expected).max())
    # With less overlap than the network sees, not: the comparison can fail.
    near = joined(encode_windows(window_encoder(encoder), [samples], window=5.0, overlap=0.04))
    assert not np.allclose(near, expected, atol=1e-4 * np.abs(expected).max())


def test_seams_tell_how_far_two_windows_differ():
    def encode(waveforms: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(waveforms[:, :1, None], (1, lengths.max() // FRAME, 2)), lengths // FRAME

    samples = np.repeat(np.float32([1, 1, 3, 3, 3]), FRAME * 5)
    encoder = WindowEncoder(encode, 50.0, 2, None, FRAME)
    pieces = list(encode_windows(encoder, [samples], window=0.3, overlap=0.1))
    # Windows start every 0.2 s, in ones, and from 0.2 s on in threes: features are all ones, or all threes.
    assert [piece.seam for piece in pieces] == [2.0, None]
    assert [piece.seam for piece in encode_windows(encoder, [samples], window=0.1, overlap=0)] == [None] * 5


def test_memory_is_that_of_the_windows():
    peaks = []
    for minutes in (2, 20):
        blocks = (np.zeros(160_000, np.float32) for _ in range(6 * minutes))
        tracemalloc.start()
        frames = sum(len(piece.features) for piece in encode_windows(counting(), blocks))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert frames == 3000 * minutes
    assert peaks[1] < 1.3 * peaks[0] < 20e6  # 20 minutes are 77 MB


def test_windows_that_an_encoder_cannot_take_are_refused():
    limited = window_encoder(step_audio_2("tiny").eval())
    assert (limited.longest, limited.frame) == (480_000, 640)
    with pytest.raises(ValueError, match=r"a window of 40 s is longer than the encoder takes: at most 30 s"):
        encode_windows(limited, [], window=40)
    anything = window_encoder(SpeechTransformer(width=32, depth=1, heads=2))
    with pytest.raises(ValueError, match=r"windows of 2 s cannot overlap by 2 s: .* longer by at least 0\.02 s"):
        encode_windows(anything, [], window=2, overlap=2)
    with pytest.raises(ValueError, match=r"overlap must be 0 or more, got -1"):
        encode_windows(anything, [], overlap=-1)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        encode_windows(anything, [], batch_size=0)
    with pytest.raises(ValueError, match="1 frames are lost between two windows"):
        list(encode_windows(counting(missing=1), [noise(40_000)], window=1, overlap=0))


def test_a_window_of_all_positions_is_taken():
    encoder = step_audio_2("tiny").eval()
    samples = noise(31 * 16_000)
    assert len(joined(encode_windows(window_encoder(encoder), [samples]))) == 775


def test_filled_windows_give_the_frames_of_the_audio_alone():
    filled = SpeechTransformer(width=32, depth=1, heads=2, positions=100, log_mel="whisper_filled").eval()
    samples = noise(16_000)
    one = joined(encode_windows(window_encoder(filled), [samples], overlap=0.5))
    with torch.no_grad():
        whole, _ = filled(*filled.front_end(torch.from_numpy(samples)[None]))
    assert np.allclose(one, whole[0, :50].numpy(), atol=2e-5)
    assert len(joined(encode_windows(window_encoder(filled), [noise(70_001)], overlap=0.5))) == 219
