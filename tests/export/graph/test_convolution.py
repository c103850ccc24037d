import copy

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import export
import quant
from export.graph.packing import give_zero_points
from export.graph.qdq import to_qdq
from export.graph.signature import Signature
from export.graph.trace import trace
from export.runtime.session import open_session

W8A8, INTEGERS = quant.BitWidth(8, 8), quant.Policy(first_layer="w8a8")


class Layers(nn.Sequential):
    def forward(self, *inputs):
        return super().forward(*inputs)


class Permuted(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, values):
        return values.permute(self.axes)


def exported(
    model: nn.Module, inputs: torch.Tensor, path, policy: quant.Policy = INTEGERS, image_windows: bool = True
) -> nn.Module:
    """The model, calibrated; its file with a dynamic batch and a dynamic last axis is at path."""
    torch.manual_seed(0)
    quant.calibrate(quant.prepare(model, policy), [inputs])
    form = copy.deepcopy(model).eval().requires_grad_(False)
    to_qdq(form, W8A8)
    axes = ("batch", *[None] * (inputs.dim() - 2), "last")
    proto = trace(form, Signature({"x": axes}, {"y": axes}), (inputs,), image_windows=image_windows)
    give_zero_points(proto)
    onnx.save(proto, path)
    return model.eval()


def assert_equal(model: nn.Module, inputs: torch.Tensor, path, tolerance: float = 1e-5) -> None:
    session = open_session(path)
    found = torch.from_numpy(session.run(None, {"x": inputs.numpy()})[0])
    with torch.no_grad(), quant.at(model, W8A8):
        assert torch.allclose(found, model(inputs), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(6, 8, 3, padding=1),
        nn.Conv1d(6, 8, 3, stride=2, padding=1, bias=False),
        nn.Conv1d(6, 8, 5, stride=3, padding=4, dilation=2),
        nn.Conv1d(6, 8, 1),
    ],
    ids=str,
)
def test_windows_of_any_length_are_torchs(layer, tmp_path):
    model = exported(Layers(layer, nn.GELU()), torch.randn(2, 6, 40), tmp_path / "x.onnx")
    operators = export.integer_operators(tmp_path / "x.onnx")
    assert (operators["MatMulIntegerToFloat"], operators.get("Conv", 0)) == (1, 0)
    for length in (17, 40, 41):
        assert_equal(model, torch.randn(3, 6, length), tmp_path / "x.onnx")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(4, 8, (3, 2), stride=(2, 1), padding=(0, 2), dilation=(1, 3)),
        nn.Conv2d(4, 8, 1, stride=2, bias=False),
    ],
    ids=str,
)
def test_windows_of_images_are_torchs(layer, tmp_path):
    model = exported(Layers(layer, nn.GELU()), torch.randn(2, 4, 12, 20), tmp_path / "x.onnx")
    assert export.integer_operators(tmp_path / "x.onnx")["MatMulIntegerToFloat"] == 1
    for length in (12, 21):
        assert_equal(model, torch.randn(2, 4, 12, length), tmp_path / "x.onnx")


@pytest.mark.parametrize(
    ("layer", "shape", "convolutions"),
    [(nn.Conv2d(4, 8, 3, padding=1, stride=2), (2, 4, 12, 20), 1), (nn.Conv1d(4, 8, 3), (2, 4, 20), 0)],
    ids=["image", "sequence"],
)
def test_only_images_stay_convolutions_for_openvino(layer, shape, convolutions, tmp_path):
    inputs = torch.randn(shape)
    model = exported(Layers(layer, nn.GELU()), inputs, tmp_path / "x.onnx", image_windows=False)
    kinds = [node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node]
    assert (kinds.count("Conv"), kinds.count("MatMul")) == (convolutions, 1 - convolutions)
    assert_equal(model, inputs, tmp_path / "x.onnx")


def test_what_is_quantized_next_stays_a_convolution(tmp_path):
    model = Layers(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3))
    model = exported(model, torch.randn(2, 6, 40), tmp_path / "x.onnx")
    operators = export.integer_operators(tmp_path / "x.onnx")
    assert (operators["QLinearConv"], operators["MatMulIntegerToFloat"]) == (1, 1)
    # Its kernel rounds the product of scales once more: a value on an edge may fall to the other side.
    one_step = model[2].activation_qparams(8)[0] * model[2].weight.detach().abs().max()
    assert_equal(model, torch.randn(3, 6, 33), tmp_path / "x.onnx", float(one_step))


def test_a_bias_beyond_32_bits_is_not_left_to_the_runtime(tmp_path):
    model = Layers(nn.Conv1d(6, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3))
    with torch.no_grad():
        model[0].weight[2] = 0
        model[0].bias[2] = 1
    model = exported(model, torch.randn(2, 6, 40), tmp_path / "x.onnx")
    assert export.integer_operators(tmp_path / "x.onnx")["MatMulIntegerToFloat"] == 2
    assert_equal(model, torch.randn(3, 6, 33), tmp_path / "x.onnx")


def test_groups_stay_convolutions(tmp_path):
    model = Layers(nn.Conv1d(6, 8, 3), nn.GELU(), nn.Conv1d(8, 8, 3, groups=4))
    model = exported(model, torch.randn(2, 6, 40), tmp_path / "x.onnx", quant.Policy())
    operators = export.integer_operators(tmp_path / "x.onnx")
    assert operators["Conv"] == 2
    # The first layer's weight is float from the start of the session on; the second's, and its input, at every run.
    assert operators["DequantizeLinear"] == 2
    assert_equal(model, torch.randn(3, 6, 33), tmp_path / "x.onnx")


@pytest.mark.parametrize("padding", [0, 2])
def test_float_inputs_are_multiplied_as_windows_and_no_transpose_is_left_between(padding, tmp_path):
    model = Layers(nn.Conv1d(6, 8, 3, padding=padding, stride=2), nn.GELU(), nn.Conv1d(8, 4, 3), nn.GELU())
    model = exported(model, torch.randn(2, 6, 40), tmp_path / "x.onnx", quant.Policy())
    kinds = [node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node]
    # One before the first product and one behind the last: the two between cancel.
    assert (kinds.count("Conv"), kinds.count("MatMul"), kinds.count("Transpose")) == (0, 2, 2)
    assert_equal(model, torch.randn(3, 6, 33), tmp_path / "x.onnx")


def test_transposes_that_do_not_cancel_become_one():
    values = torch.randn(2, 3, 4)
    model = Layers(Permuted(2, 0, 1), nn.GELU(), nn.ReLU(), Permuted(1, 0, 2), Permuted(1, 0, 2), nn.GELU())
    names = Signature({"x": (None, None, None)}, {"y": (None, None, None)})
    proto = trace(model, names, (values,))
    assert [list(node.attribute[0].ints) for node in proto.graph.node if node.op_type == "Transpose"] == [[2, 0, 1]]
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": values.numpy()})[0]), model(values))
