import numpy as np
import pytest
import torch
import torchaudio

from encoders import FilledLogMel, LogMel, WhisperLogMel


@pytest.mark.parametrize("n_mels", [80, 128])
def test_equals_torchaudio(n_mels):
    waveform = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    reference = torchaudio.transforms.MelSpectrogram(
        16_000, n_fft=400, win_length=400, hop_length=160, n_mels=n_mels, norm="slaney", mel_scale="slaney",
        pad_mode="constant",
    )(waveform)[..., :-1]  # fmt: skip
    log_mel, lengths = LogMel(n_mels)(waveform)
    assert log_mel.shape == (2, n_mels, 50)
    assert lengths.tolist() == [50, 50]
    assert torch.allclose(log_mel, (reference.clamp_min(1e-10).log10() + 4) / 4, atol=1e-5)


def test_frames_do_not_depend_on_padding():
    waveform = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    alone, _ = LogMel()(waveform)
    padded, lengths = LogMel()(torch.nn.functional.pad(waveform, (0, 3000)), torch.tensor([5000]))
    assert torch.allclose(padded[..., : lengths[0]], alone, atol=1e-6)


def test_silence_is_finite():
    assert LogMel()(torch.zeros(1, 400))[0].isfinite().all()


def test_clip_shorter_than_a_frame_is_an_error():
    with pytest.raises(ValueError, match="clip of 399 samples is shorter than one frame"):
        LogMel()(torch.zeros(1, 399))


def test_unknown_number_of_mels_is_an_error():
    with pytest.raises(ValueError, match="80 or 128, got 64"):
        LogMel(64)


@pytest.mark.parametrize("samples", [16_000, 15_999, 400, 8_123])
def test_whisper_log_mel_is_the_published_one(samples):
    from torch.nn.functional import pad

    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 0.3, samples)
    power = torch.stft(pad(waveform, (0, 479)), 400, 160, window=torch.hann_window(400), return_complex=True)
    power = power[..., :-1].abs() ** 2
    filters = torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 128, 16_000, norm="slaney", mel_scale="slaney")
    reference = (filters.T @ power).clamp_min(1e-10).log10()
    reference = (torch.maximum(reference, reference.max() - 8.0) + 4.0) / 4.0
    log_mel, frames = WhisperLogMel(128)(waveform)
    assert log_mel.shape[2] == frames[0] + 2 == -(-samples // 160) + 2
    assert torch.allclose(log_mel, reference, atol=1e-5)
    loud = torch.cat([pad(waveform, (0, 4000)), torch.randn(1, samples + 4000)])
    together, lengths = WhisperLogMel(128)(loud, torch.tensor([samples, samples + 4000]))
    assert lengths[0] == frames[0]
    assert torch.allclose(together[0, :, : frames[0] + 2], log_mel[0], atol=1e-5)


@pytest.mark.parametrize("samples", [100, 8_123, 19_200])
def test_a_filled_log_mel_is_whispers_own(samples):
    """As openai/whisper `audio.py`: 30 s of zeros after the clip, then cut to 30 s; here 1.2 s."""
    from torch.nn.functional import pad

    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)) * 0.3
    power = torch.stft(pad(waveform, (0, 19_200)), 400, 160, window=torch.hann_window(400), return_complex=True)
    filters = torchaudio.functional.melscale_fbanks(201, 0.0, 8000.0, 80, 16_000, norm="slaney", mel_scale="slaney")
    reference = (filters.T @ power[..., :-1].abs() ** 2).clamp_min(1e-10).log10()
    reference = ((torch.maximum(reference, reference.max() - 8.0) + 4.0) / 4.0)[..., :120]
    log_mel, frames = FilledLogMel(80, 19_200)(waveform)
    assert frames.tolist() == [120]
    assert torch.allclose(log_mel, reference, atol=1e-5)
    together, _ = FilledLogMel(80, 19_200)(torch.cat([pad(waveform, (0, 19_200 - samples)), torch.randn(1, 19_200)]))
    assert torch.allclose(together[:1], log_mel, atol=1e-5)
    with pytest.raises(ValueError, match=r"clip of 1\.21 s is longer than the 1\.2 s that clips are filled to"):
        FilledLogMel(80, 19_200)(torch.zeros(1, 19_300))


@pytest.mark.parametrize("samples", [100, 8_123, 17_000, 19_200])
def test_a_margin_is_the_beginning_of_the_filled_log_mel(samples):
    """As much silence as asked for, or as fits; a louder clip beside it changes nothing."""
    from torch.nn.functional import pad

    waveform = torch.randn(1, samples, generator=torch.Generator().manual_seed(0)) * 0.3
    front_end, expected = FilledLogMel(80, 19_200, margin=0.2), min(-(-samples // 160) + 20, 120)
    log_mel, frames = front_end(waveform)
    assert log_mel.shape[2] == expected and frames.tolist() == [expected]
    assert torch.allclose(log_mel, FilledLogMel(80, 19_200)(waveform)[0][:, :, :expected], atol=1e-5)
    together, lengths = front_end(
        torch.cat([pad(waveform, (0, 19_200 - samples)), torch.randn(1, 19_200)]), torch.tensor([samples, 19_200])
    )
    assert lengths.tolist() == [expected, 120]
    assert torch.allclose(together[:1, :, :expected], log_mel, atol=1e-5)


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        (0.01, r"margin must be 0\.02 or more"),
        (0.05, r"a multiple of 0\.02 s, .*, not 0\.05"),
        (31, "margin 31 is above the 30 s"),
        (np.nan, "margin must be"),
    ],
)
def test_a_margin_is_whole_frames(margin, message):
    with pytest.raises(ValueError, match=message):
        FilledLogMel(margin=margin)
