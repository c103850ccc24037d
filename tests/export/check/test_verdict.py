from dataclasses import replace

import pytest

from export import Verification
from export.check.accuracy import Accuracy
from export.check.agreement import Agreement, WorstFrame
from export.check.verdict import Roundings

WORST = WorstFrame("clip 3", 0.5, 2e-9)
GOOD = Verification(
    "encoder.onnx", "w8a8", 8, None, lengths_equal=True, padding_zero=True,
    features=Agreement(1e-9, WORST, 670, 0), limit=1e-6, inputs="shipped speech", clips=12,
    roundings=Roundings(1000, 4, 1e-13, WorstFrame("clip 1", 0.1, 2e-13)),
    head_equal=True, accuracy=Accuracy("word", 65.0, 65.5, 99.6, 40), tokens_equal=True, token_agreement=100.0,
    notes=["the file has no head"],
)  # fmt: skip


def test_the_verdict_comes_first_and_then_one_thought_a_line():
    assert str(GOOD).splitlines() == [
        "verified, the file agrees with torch at w8a8 on shipped speech",
        "  numbers: integers equal in 8 layers",
        "  features, each side with its own roundings: error over variance 1e-09 over 670 frames of 12 clips",
        "  worst frame there: 2e-09 (clip 3 at 0.50 s); 0 frames are above 1e-06",
        "  roundings: 4 of 1000 values at a rounding edge fell to its other side",
        "  that is expected of quantized files, and explains the frames above: judged is what follows",
        "  features with the file's roundings in torch: error over variance 1e-13",
        "  worst frame with the file's roundings in torch: 2e-13 (clip 1 at 0.10 s) (at most 1e-06)",
        "  head: outputs equal",
        "  tokens: 100.00 % equal",
        "  word accuracy 65.5 % (torch 65.0 %, 40 clips), the same answer for 99.6 %",
        "  not compared: the file has no head",
    ]
    assert GOOD.passed
    assert GOOD.reasons == ""


def test_a_processor_that_departs_by_default_is_in_the_verdict():
    lines = str(replace(GOOD, by_default=0.36)).splitlines()
    assert lines[0].endswith("on shipped speech, in sessions with exact arithmetic")
    assert lines[-2] == "  by default: ONNX Runtime on this processor departs from that, error over variance 0.36"
    assert "session.x64quantprecision 1 and session.qdq_matmulnbits_accuracy_level 1" in lines[-1]


def test_left_to_its_own_roundings_a_frame_may_be_far_off():
    far = Agreement(0.1, WorstFrame("clip 3", 0.5, 0.9), 670, 600)
    assert replace(GOOD, features=far).passed
    assert replace(GOOD, features=far).reasons == ""
    alone = replace(GOOD, features=far, roundings=None)
    assert not alone.passed
    assert alone.reasons == (
        "features: error over variance 0.1 over 670 frames of 12 clips; worst frame: 0.9 (clip 3 at 0.50 s) "
        "(at most 1e-06); frames above 1e-06: 600 (none may be)"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"first_difference": "blocks.0"}, "numbers: first difference in layer blocks.0 (8 layers compared)"),
        ({"first_difference": "the head's bias"}, "numbers: first difference in the head's bias (8 layers compared)"),
        ({"lengths_equal": False, "features": None}, "feature lengths differ"),
        ({"padding_zero": False}, "features beyond a clip's length are not zero"),
        (
            {"roundings": Roundings(9, 1, 0.1, WorstFrame("clip 1", None, float("nan")))},
            "features with the file's roundings in torch: error over variance 0.1; "
            "worst frame with the file's roundings in torch: nan (clip 1) (at most 1e-06)",
        ),
        ({"departure": "features depart after layer a"}, "features depart after layer a"),
        ({"head_equal": False}, "the head's outputs differ"),
        ({"tokens_equal": False}, "tokens are not those of the nearest codes"),
        (
            {"accuracy": Accuracy("word", 65.0, 45.0, 80.0, 40)},
            "word accuracy 45.0 % (torch 65.0 %, 40 clips), the same answer for 80.0 %",
        ),
    ],
)
def test_whatever_fails_is_a_reason_and_nothing_else_is(change, reason):
    result = replace(GOOD, **change)
    assert not result.passed
    assert result.verdict == "FAILED, the file does not agree with torch at w8a8 on shipped speech"
    assert result.reasons == reason
