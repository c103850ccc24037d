import pytest
import torch

from ssql.data import Digits, Noisy, SpokenWords
from ssql.data.noise import noise_gain


@pytest.fixture(scope="module")
def data():
    return Noisy(SpokenWords(train_size=40, test_size=8), snr_db=[10, 0], noisy_tasks=["word"])


def test_each_noise_and_ratio_is_a_test_split_of_its_own(data):
    assert data.test_splits == ["test", "white 10 dB", "white 0 dB", "babble 10 dB", "babble 0 dB"]
    assert data.classes == data.data.classes
    batch = next(iter(data.evaluation_dataloader("babble 0 dB")))
    assert list(batch["labels"]) == ["word"]
    assert list(next(iter(data.evaluation_dataloader("test")))["labels"]) == ["word", "language", "voice"]


def test_noise_has_the_ratio_it_says_and_is_the_same_each_time(data):
    clean = data.dataset("test")[3]["inputs"]
    for kind in ("white", "babble"):
        noises = []
        for snr in (10, 0):
            clip = data.dataset(f"{kind} {snr} dB")[3]["inputs"]
            assert torch.equal(clip, data.dataset(f"{kind} {snr} dB")[3]["inputs"])
            noises.append(clip - clean)
            ratio = 10 * (clean.square().mean() / noises[-1].square().mean()).log10()
            assert float(ratio) == pytest.approx(snr, abs=0.01)
        torch.testing.assert_close(noises[1], noises[0] * 10**0.5, atol=1e-5, rtol=1e-3)


def test_noise_gain_of_a_tone_in_a_tone():
    assert noise_gain(torch.full((10,), 0.2), torch.ones(10), 20.0).item() == pytest.approx(0.02)


def test_what_cannot_be_mixed_is_an_error():
    with pytest.raises(ValueError, match="noise is for audio, the data is image"):
        Noisy(Digits())
    with pytest.raises(ValueError, match=r"noisy_tasks \['tone'\] are not among the data's: word, language, voice"):
        Noisy(SpokenWords(train_size=40, test_size=8), noisy_tasks=["tone"]).setup()


def test_noisy_clips_say_what_the_clean_ones_do():
    texts = ["null", "eins", "zwei"]
    clean = SpokenWords(languages=["de"], train_size=1, test_size=3)
    assert clean.said() == {"test": [(f"clip {place}", text) for place, text in enumerate(texts)]}
    assert Noisy(clean).said() == clean.said()
