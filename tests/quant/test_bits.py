import pytest

from quant import FULL_PRECISION, BitWidth, Policy, parse_bit_width
from quant.policy import LayerRule


def test_reads_and_writes_bit_widths():
    assert parse_bit_width("w4a8") == BitWidth(4, 8)
    assert parse_bit_width("fp") == FULL_PRECISION
    assert [str(parse_bit_width(text)) for text in ("fp", "w2a4", "w4a32")] == ["fp", "w2a4", "w4a32"]


@pytest.mark.parametrize("text", ["w9a8", "w1a8", "int9", "8w8a", "w4", "", "w4a16", "w٨a٨"])
def test_unknown_bit_width_names_the_text_and_the_form(text):
    with pytest.raises(ValueError, match="write fp|must be 2 to 8") as error:
        parse_bit_width(text)
    assert repr(text) in str(error.value)


def test_first_layer_is_published_and_overrides_apply_in_order():
    policy = Policy(layers={"blocks.*": "w8", "blocks.1": "fp"})
    rules = policy.rules(["stem", "blocks.0", "blocks.1", "head"])
    assert rules["stem"].resolve(BitWidth(4, 4)) == BitWidth(8, 32)
    assert rules["blocks.0"].resolve(BitWidth(4, 4)) == BitWidth(8, 4)
    assert rules["blocks.1"].resolve(BitWidth(4, 4)) == FULL_PRECISION
    assert rules["head"] == LayerRule()


def test_a_full_precision_run_is_full_precision_everywhere():
    assert Policy().rules(["stem"])["stem"].resolve(FULL_PRECISION) == FULL_PRECISION


def test_pattern_without_a_layer_is_an_error():
    with pytest.raises(ValueError, match=r"'mlp\.\*' matches no layer; the layers are: stem, head"):
        Policy(layers={"mlp.*": "w8"}).rules(["stem", "head"])


def test_wrong_override_names_its_pattern():
    with pytest.raises(ValueError, match=r"'head': unknown layer bit-width 'int8'"):
        Policy(layers={"head": "int8"})


@pytest.mark.parametrize(
    ("text", "right"),
    [("int8", "int8 is w8a8"), ("INT4", "INT4 is w4a8"), ("fp32", "fp32 is fp"), ("W4A8", "W4A8 is w4a8")],
)
def test_what_others_call_it_is_told_in_our_words(text, right):
    with pytest.raises(ValueError, match=f"unknown bit-width '{text}': {right}$"):
        parse_bit_width(text)
