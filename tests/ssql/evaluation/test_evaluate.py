import itertools
import math

import numpy as np
import pytest
import torch

import quant
from encoders import SpeechTransformer, VisionEncoder, weights_sha256
from ssql.data import Digits, Noisy, SpokenProsody, SpokenWords
from ssql.evaluation.calibration import calibrate_on, correct_bias_on, sensitivities_on
from ssql.evaluation.embeddings import embed_split, part_means
from ssql.evaluation.evaluate import evaluate
from ssql.evaluation.probes import fit_heads
from ssql.evaluation.quantizers import Quantizer
from ssql.reports.tables import sensitivity_table

MIN_MAX = {"min_max": Quantizer("min_max")}


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    encoder = VisionEncoder(
        "vit_tiny_patch16_224", in_channels=1, model_arguments={"img_size": 8, "patch_size": 2, "depth": 2}
    )
    return evaluate({"random": encoder}, Digits(batch_size=256), ["fp", "w8a8", "w2a4"], quantizers=MIN_MAX)


def test_every_bit_width_and_metric_has_a_row_and_fewer_bits_lose_more(rows):
    assert [row["bit_width"] for row in rows[::3]] == ["fp", "w8a8", "w2a4"]
    values = {(row["bit_width"], row["metric"]): row["value"] for row in rows}
    assert values["fp", "linear"] > 50
    assert values["fp", "linear_fp_head"] == values["fp", "linear"]
    for metric in ("knn", "linear_fp_head"):
        lost = [values["fp", metric] - values[bit_width, metric] for bit_width in ("w8a8", "w2a4")]
        assert lost[0] < lost[1]


def test_quantizers_stand_side_by_side_and_share_full_precision():
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=32, depth=2, heads=2)
    quantizers = {"min-max": Quantizer("min_max"), "shift": Quantizer("mse", quant.Policy(shift=True))}
    data = SpokenWords(train_size=80, test_size=40)
    rows = evaluate({"random": encoder}, data, ["fp", "w4a4"], ["language"], quantizers=quantizers)
    values = {(row["method"], row["bit_width"]): row["value"] for row in rows if row["metric"] == "knn"}
    assert values["random, min-max", "fp"] == values["random, shift", "fp"]
    assert {row["quantizer"] for row in rows} == {"min-max", "shift"}
    gaps = []
    for quantizer in quantizers.values():
        if any(isinstance(module, quant.QuantLayer) for module in encoder.modules()):
            quant.unprepare(encoder)
        quant.prepare(encoder, quantizer.policy)
        calibrate_on(encoder, data, 2, quantizer.observer)
        batch = next(iter(data.evaluation_dataloader("test")))
        with torch.no_grad():
            full = encoder.embed_raw(batch["inputs"], batch["lengths"])
            with quant.at(encoder, "w8a4"):
                gaps.append((encoder.embed_raw(batch["inputs"], batch["lengths"]) - full).square().mean())
    assert gaps[1] < gaps[0] / 2


def test_a_policy_of_before_is_a_method_of_its_own():
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=32, depth=1, heads=2), quant.Policy(granularity="per_tensor"))
    quantizers = {
        "shift": Quantizer("mse", quant.Policy(shift=True)),
        "own": Quantizer("min_max", bias_correction=True),
    }
    data = SpokenWords(train_size=80, test_size=40, batch_size=32)
    rows = evaluate({"random": encoder}, data, ["w4a4"], ["language"], 4, quantizers)
    labels = [row["method"] for row in rows if row["metric"] == "knn"]
    assert labels == ["random, shift", "random, own"]
    assert [row["calibration_clips"] for row in rows if row["metric"] == "knn"] == [80, 80]
    assert quant.policy_of(encoder).granularity == "per_tensor"
    assert quant.corrected_bit_widths(encoder) == []


def test_numbers_and_noisy_splits_have_rows_of_their_own():
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=32, depth=1, heads=2)
    data = Noisy(SpokenProsody(train_size=120, test_size=60), snr_db=[0], noisy_tasks=["pitch"])
    rows = evaluate({"random": encoder}, data, ["fp", "w8a8"], ["pitch", "gender"], quantizers=MIN_MAX)
    found = {(row["task"], row["metric"]) for row in rows}
    numbers = {"r2", "r2_fp_head", "mae", "mae_fp_head"}
    assert {metric for task, metric in found if task == "pitch"} == numbers
    assert {metric for task, metric in found if task == "pitch, white 0 dB"} == numbers
    assert {metric for task, metric in found if task == "gender"} == {"linear", "linear_fp_head", "knn"}
    values = {(row["task"], row["bit_width"], row["metric"]): row for row in rows}
    assert values["pitch", "fp", "r2"]["value"] > values["pitch, white 0 dB", "fp", "r2"]["value"]
    assert values["pitch", "w8a8", "r2"]["retained"] == pytest.approx(
        values["pitch", "w8a8", "r2"]["value"] / values["pitch", "fp", "r2"]["value"]
    )
    assert values["pitch", "fp", "mae"]["unit"] == "semitones"
    fp, int8 = (values["gender", bits, "knn"]["size_bytes"] for bits in ("fp", "w8a8"))
    assert fp == 4 * sum(p.numel() for p in encoder.parameters())
    assert 0.25 < int8 / fp < 0.5


def test_parts_of_a_clip_are_pooled_apart_and_without_its_padding():
    features = torch.tensor([[1.0, 1, 2, 2, 6, 6], [1, 2, 9, 99, 99, 99]])[..., None]
    assert part_means(features, torch.tensor([6, 3]), 3).tolist() == [[1, 2, 6], [1, 2, 9]]
    assert part_means(features, torch.tensor([6, 2]), 1).tolist() == [[3], [1.5]]
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=1))
    data = SpokenProsody(train_size=1, test_size=3)
    embeddings, labels = embed_split(encoder, data, "test", "fp")
    assert embeddings.shape == (3, 3 * 16)
    assert list(labels) == data.tasks


def test_silence_that_an_encoder_fills_a_clip_with_is_not_part_of_its_embedding():
    torch.manual_seed(0)
    encoder = SpeechTransformer(width=16, depth=1, heads=2, positions=200, pooling=1, log_mel="whisper_filled").eval()
    data = SpokenProsody(train_size=1, test_size=3)
    found = embed_split(quant.prepare(encoder), data, "test", "fp").embeddings.reshape(3, 3, 16)
    for thirds, place in zip(found, range(3), strict=True):
        clip = data.dataset("test")[place]["inputs"]
        with torch.no_grad():
            features, (frames,) = encoder(*encoder.front_end(clip[None]))
        own = features[0, : math.ceil(len(clip) / 320)]  # 50 Hz
        assert frames == 200 and len(own) < 200
        cuts = [math.ceil(part * len(own) / 3) for part in range(4)]
        expected = [own[start:end].mean(0) for start, end in itertools.pairwise(cuts)]
        torch.testing.assert_close(torch.from_numpy(thirds), torch.stack(expected))


def test_sensitivity_table_has_a_line_for_each_layer_and_what_was_chosen():
    torch.manual_seed(0)
    encoder = quant.prepare(VisionEncoder("resnet10t", in_channels=1))
    rows = sensitivities_on(encoder, Digits(batch_size=16), 1)
    policy = quant.policy_within(encoder, rows, average_bits=4)
    table = sensitivity_table(rows, policy)
    assert table.row_count == len({row.layer for row in rows})
    assert [column.header for column in table.columns] == [
        "layer", "w2", "w3", "w4", "w5", "w6", "w8", "kB at most", "chosen",
    ]  # fmt: skip
    assert list(table.columns[-1].cells) == [policy.layers[layer] for layer in table.columns[0].cells]


def saved_encoder(policy=None) -> SpeechTransformer:
    torch.manual_seed(0)
    encoder = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2), policy).eval()
    quant.calibrate(encoder, [encoder.front_end(0.1 * torch.randn(4, 16_000))], lambda batch: encoder(*batch))
    return encoder


@pytest.fixture
def words(speak_once):
    return SpokenWords(languages=["en-us"], train_size=60, test_size=30, batch_size=20)


def test_as_saved_is_the_encoder_itself_whatever_was_measured_before(words):
    encoder = saved_encoder(quant.Policy(shift=True))
    correct_bias_on(encoder, words, 1, "w4a4")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    expected, _ = embed_split(encoder, words, "test", "w4a4")
    alone = evaluate({"a": encoder}, words, ["w4a4"], ["word"])
    quantizers = {"other": Quantizer("min_max", quant.Policy(), bias_correction=True), "own": Quantizer()}
    after = evaluate({"a": encoder}, words, ["w4a4"], ["word"], 1, quantizers)
    keys = ("metric", "value", "weights_sha256", "calibration_clips")
    assert [[row[key] for key in keys] for row in after if row["quantizer"] == "own"] == [
        [row[key] for key in keys] for row in alone
    ]
    assert {row["weights_sha256"] for row in alone} == {weights_sha256(encoder)}
    assert {row["weights_sha256"] for row in after if row["quantizer"] == "other"}.isdisjoint({weights_sha256(encoder)})
    assert encoder.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert np.array_equal(embed_split(encoder, words, "test", "w4a4")[0], expected)
    # The heads saw these very features.
    train, answers = embed_split(encoder, words, "train", "w4a4")
    said = fit_heads(train, answers["word"])["linear"].predict(expected)
    right = 100 * (said == embed_split(encoder, words, "test", "w4a4")[1]["word"]).mean()
    assert alone[0]["metric"] == "linear"
    assert alone[0]["value"] == pytest.approx(right)


def test_learned_steps_are_measured_as_saved_and_left_aside_by_quantizers(words):
    encoder = saved_encoder()
    quant.learn_steps(encoder, "w4a4")
    with torch.no_grad():
        for layer in quant.quant_layers(encoder).values():
            layer.weight_step.mul_(8)
    data, tasks = words, ["word"]
    learned = evaluate({"a": encoder}, data, ["w4a4"], tasks)
    anew = evaluate({"a": encoder}, data, ["w4a4"], tasks, 1, MIN_MAX)
    assert learned[0]["value"] != anew[0]["value"]
    assert quant.learned_bit_width(encoder) == quant.parse_bit_width("w4a4")
    with pytest.raises(quant.NotCalibratedError, match="a cannot be measured as saved at w8a8: steps were learned"):
        evaluate({"a": encoder}, data, ["fp", "w8a8"], tasks)


def test_what_cannot_run_as_saved_is_said_before_anything_is_measured(words, monkeypatch):
    fresh = SpeechTransformer(width=16, depth=1, heads=2)
    ranges = quant.prepare(SpeechTransformer(width=16, depth=1, heads=2))
    monkeypatch.setattr("ssql.evaluation.embeddings.embed_split", lambda *_: pytest.fail("measured"))
    for encoder, reason in ((fresh, "it was never calibrated"), (ranges, "no activation range for w8a8")):
        with pytest.raises(quant.NotCalibratedError, match=f"b cannot be measured as saved at w8a8: .*{reason}"):
            evaluate({"a": saved_encoder(), "b": encoder}, words, ["fp", "w8a8"], ["word"])
    monkeypatch.undo()
    rows = evaluate({"b": fresh}, words, ["fp"], ["word"])
    assert {row["weights_sha256"] for row in rows} == {weights_sha256(fresh)}
    assert not any(isinstance(module, quant.QuantLayer) for module in fresh.modules())
    with pytest.raises(ValueError, match="unknown observer 'mean': write one of as_saved, min_max"):
        Quantizer("mean")
    with pytest.raises(ValueError, match="needs an observer that finds ranges anew"):
        Quantizer(policy=quant.Policy())


def test_bad_questions_are_errors():
    encoder = VisionEncoder("resnet10t", in_channels=1)
    with pytest.raises(ValueError, match="unknown bit-width 'int4'"):
        evaluate({"a": encoder}, Digits(), ["int4"])
    with pytest.raises(ValueError, match="not all among the data's labels: class"):
        evaluate({"a": encoder}, Digits(), ["fp"], tasks=["speaker"])
    with pytest.raises(ValueError, match="a is an encoder for audio, the data is image"):
        evaluate({"a": SpeechTransformer(width=16, depth=1, heads=1)}, Digits(), ["fp"])
