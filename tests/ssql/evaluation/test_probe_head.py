import numpy as np
import pytest
import torch

import quant
from encoders import Head, SpeechTransformer
from ssql.data import Digits, SpokenProsody, SpokenWords
from ssql.evaluation.embeddings import embed_split
from ssql.evaluation.probe_head import head_of, labelled_test, probe_head
from ssql.evaluation.probes import fit_heads


def features(clips: int = 200, width: int = 12) -> np.ndarray:
    """Of very different sizes, one of them constant, so that the scaler has something to do."""
    values = np.random.default_rng(0).standard_normal((clips, width)) * np.logspace(-2, 2, width) + 3
    values[:, 0] = 7
    return values.astype(np.float32)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_head_gives_the_probes_answers_and_probabilities(classes):
    given = features()
    labels = np.random.default_rng(1).integers(classes, size=len(given))
    probe = fit_heads(given, labels)["linear"]
    head = head_of(probe, [f"class {i}" for i in range(classes)], "kind")
    with torch.no_grad():
        logits = head(torch.from_numpy(given))
    assert (head.task, head.label, len(head.classes)) == ("classification", "kind", classes)
    assert np.allclose(logits.softmax(1), probe.predict_proba(given), atol=1e-4)
    assert np.array_equal(logits.argmax(1), probe.predict(given))


def test_classes_that_training_never_had_are_not_answered():
    given = features()
    labels = np.where(np.arange(len(given)) % 2, 3, 1)
    head = head_of(fit_heads(given, labels)["linear"], ["a", "b", "c", "d"], "letter")
    assert head.classes == ["b", "d"]


def test_numbers_become_a_regression_head():
    given = features()
    numbers = (given @ np.linspace(0, 1, given.shape[1])).astype(np.float32) * 100
    probe = fit_heads(given, numbers)["r2"]
    head = head_of(probe, ["pitch"], "pitch", ["Hz"])
    with torch.no_grad():
        values = head(torch.from_numpy(given))
    assert (head.task, head.units) == ("regression", ["Hz"])
    assert np.allclose(values[:, 0], probe.predict(given), rtol=1e-4)


@pytest.fixture(scope="module")
def words() -> SpokenWords:
    return SpokenWords(languages=["de"], train_size=60, test_size=20)


@pytest.fixture(scope="module")
def encoder(words) -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2)).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    return encoder


def test_a_probe_of_an_encoder_is_fitted_at_the_bit_width(encoder, words):
    head = probe_head(encoder, words, "word", "w4a4")
    embeddings, answers = embed_split(encoder, words, "train", "w4a4")
    expected = fit_heads(embeddings, answers["word"])["linear"].predict(embeddings)
    with torch.no_grad():
        assert np.array_equal(head(torch.from_numpy(embeddings)).argmax(1), expected)
    other = probe_head(encoder, words, "word", "fp")
    assert not torch.equal(other.linear.weight, head.linear.weight)


def test_test_batches_carry_the_names_of_what_is_right(encoder, words):
    (inputs, lengths, names), *rest = labelled_test(words, Head("classification", 4, ["de/null"], label="word"))
    batch = next(iter(words.evaluation_dataloader("test")))
    assert names == [words.classes["word"][label] for label in batch["labels"]["word"]]
    assert (len(inputs), len(lengths), rest) == (20, 20, [])
    ((_, _, texts),) = labelled_test(words, Head("ctc", 4, ["a"], label="text"))
    assert texts == batch["texts"]
    with pytest.raises(ValueError, match="unknown task 'text'; the data has: class"):
        labelled_test(Digits(), Head("ctc", 4, ["a"], label="text"))


def test_what_cannot_be_probed_is_said(encoder, words):
    with pytest.raises(ValueError, match="task 'digit' is not among the data's labels: word, language, voice"):
        probe_head(encoder, words, "digit", "fp")
    with pytest.raises(ValueError, match="the encoder is for audio, the data is image"):
        probe_head(encoder, Digits(), "class", "fp")


def test_a_target_of_the_data_becomes_a_regression_head(encoder):
    data = SpokenProsody(train_size=40, test_size=8)
    target = next(iter((data.setup(), data.targets)[1]))
    head = probe_head(encoder, data, target, "fp")
    assert (head.task, head.classes, head.units) == ("regression", [target], [data.targets[target]])
