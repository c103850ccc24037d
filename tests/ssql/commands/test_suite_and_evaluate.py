import json

import pytest
import torch

import quant
import ssql.commands.suite
from encoders import SpeechTransformer, save_encoder
from ssql.commands.compare import compare
from ssql.commands.evaluate import evaluate
from ssql.commands.suite import suite
from ssql.data import SpokenProsody, SpokenWords


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "encoder"
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2)).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    save_encoder(encoder, folder)
    return str(folder)


def test_evaluate_and_compare_leave_rows_tables_and_a_plot(encoder, tmp_path):
    for seed in (0, 1):
        data = SpokenWords(train_size=80 + seed, test_size=40)
        evaluate({"a": encoder}, data, str(tmp_path / f"{seed}"), ["fp", "w4a8"], ["language"])
    compare([str(tmp_path / f"{seed}" / "accuracy.json") for seed in (0, 1)], str(tmp_path / "both"))
    for folder in ("0", "both"):
        assert {file.name for file in (tmp_path / folder).iterdir()} == {
            f"accuracy.{ending}" for ending in ("json", "csv", "md", "png")
        }
    assert " ± " in (tmp_path / "both" / "accuracy.md").read_text()
    with pytest.raises(FileExistsError, match="accuracy.json exists already"):
        compare([str(tmp_path / "0" / "accuracy.json")], str(tmp_path / "both"))


def test_the_suite_puts_recognition_prosody_and_other_rows_side_by_side(encoder, tmp_path, monkeypatch):
    small = {"words": SpokenWords(train_size=80, test_size=40), "prosody": SpokenProsody(train_size=80, test_size=40)}
    monkeypatch.setattr(ssql.commands.suite, "speech_suite", lambda *_: (small, ["fsdd skipped: not here"]))
    wer = [
        {"method": "a", "task": "text", "bit_width": bits, "metric": "wer", "value": value}
        for bits, value in (("fp", 10.0), ("w4a8", 20.0))
    ]
    (tmp_path / "wer.json").write_text(json.dumps(wer))
    suite({"a": encoder}, str(tmp_path), bit_widths=["fp", "w4a8"], rows=[str(tmp_path / "wer.json")])
    tasks = {row["task"] for row in json.loads((tmp_path / "suite.json").read_text())}
    assert tasks == {
        "words/word", "words/language", "words/voice", "text",
        "prosody/contour", "prosody/gender", "prosody/pitch", "prosody/energy", "prosody/rate",
    }  # fmt: skip
    report = (tmp_path / "suite.md").read_text()
    assert report.startswith("fsdd skipped: not here.")
    assert "| text | WER, % | a | 10.0 | 20.0 |" in report
    assert "| text | a | 100 | 89 |" in report


def test_a_suite_of_nothing_is_an_error(encoder, tmp_path):
    with pytest.raises(ValueError, match="nothing to measure: fsdd .* skipped: .*none does not exist"):
        suite({"a": encoder}, str(tmp_path), parts=["fsdd"], recordings={"fsdd": str(tmp_path / "none")})
