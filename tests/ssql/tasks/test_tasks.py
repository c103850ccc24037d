"""Each task's loss and scores against an independent reference, and the task that names stand for."""

import math
from itertools import product

import pytest
import torch

from encoders import Head, SpeechTransformer
from encoders.heads import greedy_texts
from ssql.data import DataModule
from ssql.data.batch import LabelledTensors
from ssql.tasks import CTC, Classification, Regression, task_of
from ssql.tasks.ctc import frames_needed


class Clips(DataModule):
    modality = "audio"

    def load(self):
        self.classes, self.targets = {"word": ["a", "b"]}, {"pitch": "Hz", "energy": "dB"}
        clips = [torch.randn(3200, generator=torch.Generator().manual_seed(index)) for index in range(4)]
        labels = {"word": [0, 1, 0, 1], "pitch": [100.0, 200.0, 300.0, 400.0], "energy": [-20.0, -21.0, -20.0, -21.0]}
        return {name: LabelledTensors(clips, labels, ["ab", "ba", "aa", "b"]) for name in ("train", "test")}


def test_names_stand_for_tasks():
    data = Clips()
    assert isinstance(task_of(data, "word"), Classification)
    assert isinstance(task_of(data, "pitch"), Regression)
    assert task_of(data, ["pitch", "energy"]).units == ["Hz", "dB"]
    assert task_of(data, "text").classes == ["a", "b"]
    with pytest.raises(ValueError, match="unknown task 'tone'; the data has: word, pitch, energy, text"):
        task_of(data, "tone")
    with pytest.raises(ValueError, match=r"must all be numbers to predict \(pitch, energy\)"):
        task_of(data, ["pitch", "word"])


def test_classification():
    task = Classification("word", ["a", "b", "c"])
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    batch = {"labels": {"word": labels}}
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    expected = -torch.stack([probabilities[index, label].log() for index, label in enumerate(labels)]).mean()
    assert torch.allclose(task.loss(logits, None, batch), expected)
    metrics = task.metrics()
    for part in (slice(0, 4), slice(4, 6)):
        metrics.update(*task.answers(logits[part], None, {"labels": {"word": labels[part]}}))
    (score,) = task.scores(metrics)
    share = sum(int(row.argmax()) == label for row, label in zip(logits, labels.tolist(), strict=True)) / 6
    assert (score.task, score.metric, score.unit) == ("word", "accuracy", "%")
    assert score.value == pytest.approx(100 * share)
    with pytest.raises(ValueError, match="there is nothing to tell apart"):
        Classification("word", ["a"])


def test_regression():
    data = Clips()
    task = task_of(data, ["pitch", "energy"])
    head = task.new_head(SpeechTransformer(width=16, depth=1, heads=2), data)
    task.check_head(head)
    assert torch.allclose(head.mean, torch.tensor([250.0, -20.5]))
    assert torch.allclose(head.std, torch.tensor([math.sqrt(12_500), 0.5]))
    values = torch.tensor([[110.0, -20.0], [180.0, -20.5], [330.0, -21.0]])
    right = torch.tensor([[100.0, -20.0], [200.0, -21.0], [300.0, -20.0]])
    batch = {"labels": {"pitch": right[:, 0], "energy": right[:, 1]}}
    assert torch.allclose(task.loss(values, None, batch), ((values - right) / head.std).square().mean())
    metrics = task.metrics()
    metrics.update(*task.answers(values, None, batch))
    scores = {(score.task, score.metric): score.value for score in task.scores(metrics)}
    assert scores["pitch", "mae"] == pytest.approx(20.0)
    assert scores["energy", "mae"] == pytest.approx(0.5)
    assert scores["pitch", "r2"] == pytest.approx(1 - (100 + 400 + 900) / 20_000, abs=1e-5)
    assert task.quality(task.scores(metrics)) == pytest.approx((scores["pitch", "r2"] + scores["energy", "r2"]) / 2)


def test_ctc_loss_is_the_sum_over_all_paths():
    task = CTC(["ab", "b"])
    logits = torch.randn(1, 4, 3)
    probabilities = logits[0].softmax(dim=-1)
    total = sum(
        math.prod(probabilities[frame, token].item() for frame, token in enumerate(path))
        for path in product(range(3), repeat=4)
        if collapsed(path) == [1, 2]
    )
    loss = task.loss(logits, torch.tensor([4]), {"texts": ["ab"]})
    assert loss.item() == pytest.approx(-math.log(total) / 2, rel=1e-5)


def test_ctc_decodes_and_counts_errors():
    task = CTC(["a b"])
    path = torch.tensor([[2, 2, 0, 2, 0, 1, 3], [3, 0, 0, 0, 2, 1, 1]])
    logits = torch.nn.functional.one_hot(path, 4).float()
    lengths = torch.tensor([7, 4])
    assert task.classes == [" ", "a", "b"]
    assert greedy_texts(logits, lengths, task.classes) == ["aa b", "b"]
    metrics = task.metrics()
    metrics.update(*task.answers(logits, lengths, {"texts": ["aa a", "b"]}))
    wer, cer = task.scores(metrics)
    assert (wer.metric, wer.value) == ("wer", pytest.approx(100 / 3))
    assert (cer.metric, cer.value) == ("cer", pytest.approx(100 / 5))
    assert [frames_needed(text) for text in ("ab", "aab", "aaa")] == [2, 4, 5]
    with pytest.raises(ValueError, match="text of training item 1 is empty"):
        CTC(["a", ""])


def test_heads_and_data_of_others():
    data, encoder = Clips(), SpeechTransformer(width=16, depth=1, heads=2)
    task = task_of(data, "word")
    with pytest.raises(ValueError, match="a head whose task is regression, the data gives classification"):
        task.check_head(Head("regression", 16, ["word"], ["Hz"], "word"))
    with pytest.raises(ValueError, match=r"classes is \['a', 'c'\], the data gives \['a', 'b'\]"):
        task.check_head(Head("classification", 16, ["a", "c"], label="word"))
    constant = Clips()
    constant.setup()
    constant.dataset("train").labels["pitch"] = [1.0] * 4
    with pytest.raises(ValueError, match="pitch is 1 Hz in all"):
        task_of(constant, "pitch").check_data(encoder, constant)


def collapsed(path):
    merged = [token for index, token in enumerate(path) if index == 0 or token != path[index - 1]]
    return [token for token in merged if token != 0]
