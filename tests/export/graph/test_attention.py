import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export.graph.attention import TRANSLATIONS
from export.graph.trace import OPSET, _quiet


class Attention(nn.Module):
    def forward(self, query, key, value, mask):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(3, 2, 4, 7, 16).unbind()


def through_onnx(model, inputs):
    with _quiet():
        program = torch.onnx.export(
            model, inputs, dynamo=True, opset_version=OPSET, verbose=False, custom_translation_table=TRANSLATIONS
        )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
    operators = {node.op_type for node in program.model_proto.graph.node}
    return torch.from_numpy(session.run(None, feeds)[0]), operators


@pytest.mark.parametrize("mask", [torch.rand(2, 1, 1, 7) > 0.4, torch.randn(2, 1, 7, 7)], ids=["bool", "float"])
def test_attention_is_torchs_without_guarding_nan(batch, mask):
    if mask.dtype == torch.bool:
        mask[..., 0] = True
    inputs = (*batch, mask)
    found, operators = through_onnx(Attention(), inputs)
    assert torch.allclose(found, Attention()(*inputs), atol=1e-5)
    assert "IsNaN" not in operators


def test_a_clip_without_a_frame_stays_finite(batch):
    found, _ = through_onnx(Attention(), (*batch, torch.zeros(2, 1, 1, 7, dtype=torch.bool)))
    assert found.isfinite().all()
