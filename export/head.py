"""A task head inside a file: one product and one sum, written by name so that it can be read back."""

import json

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from encoders import Head

WEIGHT, BIAS = "head.weight", "head.bias"


class ExportedHead(nn.Module):
    """A head whose weight is stored transposed, (feature_dim, outputs), with the units of a regression folded in.

    Args:
        head: left untouched.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.task = head.task
        weight, bias = head.linear.weight.detach(), head.linear.bias.detach()
        if head.mean is not None and head.std is not None:
            weight, bias = weight * head.std.unsqueeze(1), bias * head.std + head.mean
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("bias", bias.clone())

    def forward(self, features: Tensor) -> Tensor:
        """As the head it came from."""
        return features @ self.weight + self.bias


def output_name(head: Head) -> str:
    """`values` of a regression, `logits` otherwise."""
    return "values" if head.task == "regression" else "logits"


def stored_head(proto: onnx.ModelProto) -> Head | None:
    """The head in a file written by `to_onnx`; None when it has none."""
    description = next((prop.value for prop in proto.metadata_props if prop.key == "head"), "null")
    arguments = json.loads(description)
    if arguments is None:
        return None
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    weight, bias = (torch.from_numpy(numpy_helper.to_array(stored[name]).copy()) for name in (WEIGHT, BIAS))
    head = Head(**arguments)
    with torch.no_grad():
        head.linear.weight.copy_(weight.T)
        head.linear.bias.copy_(bias)
    return head.eval().requires_grad_(False)


def same_numbers(head: Head, other: Head) -> bool:
    """Whether two heads, exported, store the same numbers."""
    forms = ExportedHead(head), ExportedHead(other)
    return all(np.array_equal(a, b) for a, b in zip(*(form.state_dict().values() for form in forms), strict=True))
