import pytest
import torch

import quant
from encoders import SpeechTransformer, Tokenizer
from ssql.data import Digits, SpokenWords
from ssql.evaluation.calibration import calibrate_on, correct_bias_on
from ssql.evaluation.quantizers import Quantizer
from ssql.evaluation.token_agreement import compare_tokens, token_agreement, tokenize_split


def test_agreement_use_and_perplexity_of_two_clips():
    expected = [torch.tensor([0, 1, 2, 3]), torch.tensor([1, 1])]
    found = [torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0])]
    rows = {row["metric"]: row for row in compare_tokens(expected, found, 8)}
    assert rows["agreement"]["value"] == pytest.approx(100 * 4 / 6)
    # By chance: 1/6 * 3/6 + 3/6 * 2/6 + 1/6 * 1/6.
    assert rows["agreement"]["chance"] == pytest.approx(100 * 10 / 36)
    assert rows["agreement"]["low"] == pytest.approx(50)  # the second clip alone
    assert rows["agreement"]["high"] == pytest.approx(75)  # the first alone
    assert rows["use"]["value"] == 37.5
    assert rows["perplexity"]["value"] == pytest.approx(2.7495, abs=1e-4)  # of 3/6, 2/6, 1/6
    assert {row["tokens"] for row in rows.values()} == {6}


def test_clips_without_tokens():
    with pytest.raises(ValueError, match="no clip is long enough for a token"):
        compare_tokens([torch.tensor([], dtype=torch.long)], [torch.tensor([], dtype=torch.long)], 8)


@pytest.fixture(scope="module")
def data():
    return SpokenWords(languages=["en-us"], train_size=40, test_size=20, batch_size=10)


@pytest.fixture
def pair(data):
    """An encoder that has learned nothing, and codes that are some of its frames."""
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=1, heads=2).eval()
    tokenizer = Tokenizer(16, 50.0, linguistic_codes=8, semantic_codes=16, code_dim=4)
    batch = next(iter(data.evaluation_dataloader("train")))
    with torch.no_grad():
        vectors = tokenizer.vectors(*encoder(*encoder.front_end(batch["inputs"], batch["lengths"])))
        for name, stream in tokenizer.streams.items():
            stream.codebook.copy_(
                vectors[name][0][:, 2:7].flatten(0, 1)[:: 50 // len(stream.codebook)][: len(stream.codebook)]
            )
    return encoder, tokenizer


def test_rows_of_streams_bit_widths_and_quantizers(data, pair):
    quantizers = {"min-max": Quantizer("min_max"), "corrected": Quantizer("mse", quant.Policy(shift=True), True)}
    rows = token_agreement({"a": pair}, data, ["w2a4", "fp"], 2, quantizers)
    assert {row["method"] for row in rows} == {"a, min-max", "a, corrected"}
    agreement = {
        (row["method"], row["task"], row["bit_width"]): row["value"] for row in rows if row["metric"] == "agreement"
    }
    assert len(agreement) == 8
    assert all(value == 100 for (_, _, bits), value in agreement.items() if bits == "fp")
    assert all(value < 100 for (_, _, bits), value in agreement.items() if bits == "w2a4")
    # The encoder is left as it was. As saved with the same ranges and corrections: the same tokens.
    encoder, _ = pair
    assert not any(isinstance(module, quant.QuantLayer) for module in encoder.modules())
    quant.prepare(encoder, quant.Policy(shift=True))
    calibrate_on(encoder, data, 2, "mse")
    correct_bias_on(encoder, data, 2, "w2a4")
    saved = token_agreement({"a": pair}, data, ["w2a4"])
    assert [row["value"] for row in saved] == [row["value"] for row in rows if row["method"] == "a, corrected"][-6:]
    full, few = (tokenize_split(*pair, data, "test", bits) for bits in ("fp", "w2a4"))
    equal = sum(int((a == b).sum()) for a, b in zip(full["semantic"], few["semantic"], strict=True))
    tokens = sum(map(len, full["semantic"]))
    assert agreement["a, corrected", "semantic", "w2a4"] == pytest.approx(100 * equal / tokens)


def test_bad_input(data, pair):
    encoder, _ = pair
    with pytest.raises(ValueError, match="unknown bit-width 'w1a1'"):
        token_agreement({"a": pair}, data, ["w1a1"])
    with pytest.raises(ValueError, match="the tokenizer takes 24 features"):
        token_agreement({"a": (encoder, Tokenizer(24, 50.0))}, data)
    with pytest.raises(ValueError, match="a is an encoder for audio, the data is image"):
        token_agreement({"a": pair}, Digits())
