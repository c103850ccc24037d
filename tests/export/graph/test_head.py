import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from written import to_file

import export
import quant
from encoders import Head, VisionEncoder
from export.check.accuracy import Accuracy, compare_accuracy
from export.graph.head import stored_head
from export.graph.pipeline import Pipeline
from export.runtime.session import open_session

HEADS = {
    "classification": Head("classification", 32, ["yes", "no", "perhaps"], label="answer"),
    "ctc": Head("ctc", 32, ["a", "b"], label="text"),
    "regression": Head("regression", 32, ["pitch", "energy"], units=["Hz", "dB"], label="prosody"),
}


@pytest.fixture(scope="module", params=HEADS)
def head(request) -> Head:
    head = HEADS[request.param].eval()
    torch.manual_seed(1)
    with torch.no_grad():
        torch.nn.init.normal_(head.linear.weight)
        if head.mean is not None:
            head.mean.copy_(torch.tensor([180.0, -20.0]))
            head.std.copy_(torch.tensor([60.0, 5.0]))
    return head


@pytest.fixture(scope="module")
def exported(encoder, head, tmp_path_factory):
    return to_file(encoder, tmp_path_factory.mktemp("head") / "encoder.onnx", "w8a8", head=head, check=False)


@pytest.fixture(scope="module")
def answering(encoder, tmp_path_factory):
    """A head of classes, and a file that has it."""
    torch.manual_seed(2)
    head = Head("classification", 32, ["yes", "no", "perhaps"], label="answer").eval()
    path = tmp_path_factory.mktemp("answering") / "encoder.onnx"
    return head, to_file(encoder, path, "w8a8", head=head, check=False)


def outputs_of(path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    session = open_session(path)  # exact sums, whatever the processor
    values = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return {spec.name: torch.from_numpy(value) for spec, value in zip(session.get_outputs(), values, strict=True)}


def test_a_heads_outputs_are_torchs_for_long_short_and_empty_clips(encoder, head, exported):
    log_mel, lengths = torch.randn(3, 80, 50), torch.tensor([50, 23, 0])
    found = outputs_of(exported, {"log_mel": log_mel, "lengths": lengths})
    features, frames = found["features"], found["feature_lengths"]  # a value at a rounding edge may fall to either side
    with torch.no_grad():
        expected = head(features if head.task == "ctc" else encoder.pool(features, frames))
    name = "values" if head.task == "regression" else "logits"
    assert list(found) == ["features", "feature_lengths", name]
    assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    assert torch.equal(found["features"][2], torch.zeros(25, 32))


def test_the_head_in_a_file_is_read_back(head, exported):
    stored = stored_head(onnx.load(exported))
    assert stored.arguments == head.arguments
    features = torch.randn(4, 32)
    assert torch.allclose(stored(features), head(features), rtol=1e-5, atol=1e-4)


def test_a_changed_head_fails_verification(encoder, head, exported, tmp_path):
    whole = export.verify(exported, encoder, head=head)
    assert (whole.passed, whole.head_equal) == (True, True)
    proto, path = onnx.load(exported), tmp_path / "encoder.onnx"
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.5), bias.name))
    onnx.save(proto, path)
    result = export.verify(path, encoder, head=head)
    assert (result.passed, result.first_difference) == (False, "the head's bias")


def test_an_operation_of_the_head_that_is_not_torchs_fails_verification(encoder, answering, tmp_path):
    proto, path = onnx.load(answering[1]), tmp_path / "encoder.onnx"
    product = next(node for node in proto.graph.node if "head.weight" in node.input)
    add = next(node for node in proto.graph.node if product.output[0] in node.input)
    add.op_type = "Sub"
    onnx.save(proto, path)
    result = export.verify(path, encoder)
    assert (result.passed, result.head_equal, result.first_difference) == (False, False, None)
    assert "the head's outputs differ" in str(result)


def test_images_have_heads_too(tmp_path):
    torch.manual_seed(0)
    encoder = VisionEncoder("test_resnet", in_channels=1).eval()
    head = Head("classification", encoder.feature_dim, ["cat", "dog"]).eval()
    path = to_file(encoder, tmp_path / "encoder.onnx", head=head, image_size=32)
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = head(encoder(images))
    assert torch.allclose(outputs_of(path, {"images": images})["logits"], expected, atol=1e-4)


def test_answers_in_the_file_are_torchs_or_verification_fails(encoder, tmp_path):
    head = HEADS["classification"].eval()
    waveforms, lengths = 0.1 * torch.randn(20, 8_000), torch.full((20,), 8_000)
    with torch.no_grad(), quant.at(encoder, "w8a8"):
        right = head(encoder.embed_raw(waveforms, lengths)).argmax(1)
    right[:5] = (right[:5] + 1) % 3
    labels = [head.classes[index] for index in right]
    path = tmp_path / "encoder.onnx"
    to_file(encoder, path, "w8a8", head=head, labelled=[(waveforms, lengths, labels)])
    result = export.verify(path, encoder, labelled=[(waveforms, lengths, labels)])
    assert result.accuracy == Accuracy(head.label, torch=75, onnx=75, agreement=100, clips=20)
    bare = to_file(encoder, tmp_path / "bare.onnx", "w8a8")
    assert export.verify(bare, encoder, head=head, labelled=[(waveforms, lengths, labels)]).accuracy.onnx == 75
    with pytest.raises(ValueError, match=r"bare\.onnx has no head"):
        export.verify(bare, encoder, labelled=[(waveforms, lengths, labels)])
    result.accuracy.agreement = 99.4
    assert not result.passed
    with pytest.raises(ValueError, match="a ctc head for a file without one has no accuracy of clips"):
        export.verify(bare, encoder, head=HEADS["ctc"], labelled=[(waveforms, lengths, labels)])


def test_other_answers_than_torchs_are_counted(encoder, answering):
    head, path = answering
    waveforms, lengths = 0.1 * torch.randn(20, 8_000), torch.full((20,), 8_000)
    session = open_session(path)
    honest = session.run
    session.run = lambda names, feeds: [*(outputs := honest(names, feeds))[:-1], -outputs[-1]]
    with torch.no_grad(), quant.at(encoder, "w8a8"):
        labels = head.answers(head(encoder.embed_raw(waveforms, lengths)))
    reference, run = Pipeline(encoder, head=head), quant.parse_bit_width("w8a8")
    found = compare_accuracy(session, reference, head, run, "log_mel", [(waveforms, lengths, labels)])
    assert (found.torch, found.onnx, found.agreement, found.agrees) == (100, 0, 0, False)


def test_texts_in_the_file_are_torchs(encoder, tmp_path):
    head = copy.deepcopy(HEADS["ctc"]).eval()
    head.linear.bias.data[0] = -10  # a head that learned nothing says blanks
    waveforms, lengths = 0.1 * torch.randn(4, 8_000), torch.full((4,), 8_000)
    with torch.no_grad(), quant.at(encoder, "w8a8"):
        features, frames = encoder(*encoder.front_end(waveforms, lengths))
        labels = head.answers(head(features), frames)
    assert any(labels)
    labels[0] += "!"
    path = to_file(encoder, tmp_path / "encoder.onnx", "w8a8", head=head)
    accuracy = export.verify(path, encoder, labelled=[(waveforms, lengths, labels)]).accuracy
    assert (accuracy.torch, accuracy.onnx, accuracy.agreement) == (75, 75, 100)
