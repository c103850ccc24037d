import json

import pytest
import torch

from encoders import SpeechTransformer, VisionEncoder
from ssql.data import Digits
from ssql.evaluate import evaluate
from ssql.report import load_rows, markdown_table, pivot, save_json, save_plot


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    encoder = VisionEncoder(
        "vit_tiny_patch16_224", in_channels=1, model_arguments={"img_size": 8, "patch_size": 2, "depth": 2}
    )
    return evaluate({"random": encoder}, Digits(batch_size=256), ["fp", "w8a8", "w2a4"])


def test_every_bit_width_and_metric_has_a_row_and_fewer_bits_lose_more(rows):
    assert [row["bit_width"] for row in rows[::3]] == ["fp", "w8a8", "w2a4"]
    values = {(row["bit_width"], row["metric"]): row["value"] for row in rows}
    assert values["fp", "linear"] > 50
    assert values["fp", "linear_fp_head"] == values["fp", "linear"]
    for metric in ("knn", "linear_fp_head"):
        lost = [values["fp", metric] - values[bit_width, metric] for bit_width in ("w8a8", "w2a4")]
        assert lost[0] < lost[1]


def test_table_plot_and_json(rows, tmp_path):
    table = markdown_table(rows)
    assert table.startswith("| task | method | fp | w8a8 | w2a4 |")
    save_json(rows, tmp_path / "accuracy.json")
    assert json.loads((tmp_path / "accuracy.json").read_text()) == rows
    save_plot(rows, tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_runs_are_merged_as_mean_and_deviation(rows, tmp_path):
    shifted = [row | {"value": row["value"] + 2} for row in rows]
    _, (line,) = pivot(rows + shifted, "knn")
    assert line.runs == 2
    assert line.means[0] == pytest.approx(rows[2]["value"] + 1)
    assert line.deviations[0] == pytest.approx(2**0.5)
    assert f"{line.means[0]:.1f} ± 1.4" in markdown_table(rows + shifted, "knn")
    save_plot(rows + shifted, tmp_path / "accuracy.png")
    with pytest.raises(ValueError, match="random on class was not measured equally often at fp, w8a8, w2a4"):
        pivot(rows + shifted[:3], "knn")


def test_files_that_hold_no_rows_are_errors(rows, tmp_path):
    save_json(rows, tmp_path / "accuracy.json")
    assert load_rows(tmp_path / "accuracy.json") == rows
    for text, message in (("nothing", "is not JSON"), ('[{"method": "a"}]', "does not hold rows of bit_width, method")):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_rows(tmp_path / "other.json")


def test_bad_questions_are_errors():
    encoder = VisionEncoder("resnet10t", in_channels=1)
    with pytest.raises(ValueError, match="unknown bit-width 'int4'"):
        evaluate({"a": encoder}, Digits(), ["int4"])
    with pytest.raises(ValueError, match="not all among the data's labels: class"):
        evaluate({"a": encoder}, Digits(), ["fp"], tasks=["speaker"])
    with pytest.raises(ValueError, match="a is an encoder for audio, the data is image"):
        evaluate({"a": SpeechTransformer(width=16, depth=1, heads=1)}, Digits(), ["fp"])
