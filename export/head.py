"""A task head inside a file: one product and one sum, written by name so that it can be read back."""

import json
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from encoders import Head
from export.metadata import VerificationError

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


def stored_head(proto: onnx.ModelProto, path: str | Path = "the file") -> Head | None:
    """The head in a file written by `to_onnx`; None when it has none.

    Args:
        proto: the file.
        path: its name, for errors.

    Raises:
        VerificationError: a head that the file describes and does not hold.
    """
    description = next((prop.value for prop in proto.metadata_props if prop.key == "head"), "null")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    try:
        arguments = json.loads(description)
        if arguments is None:
            return None
        head = Head(**arguments)
        weight, bias = (torch.from_numpy(numpy_helper.to_array(stored[name]).copy()) for name in (WEIGHT, BIAS))
        with torch.no_grad():
            head.linear.weight.copy_(weight.T)
            head.linear.bias.copy_(bias)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise VerificationError(f"{path} describes a head that it does not hold: export it again ({error})") from error
    return head.eval().requires_grad_(False)


def head_difference(head: Head, other: Head) -> str | None:
    """What two heads differ in: names, units, label, or the numbers that a file stores; None when in nothing."""
    found, expected = head.to_dict(), other.to_dict()
    for key, value in expected.items():
        if found[key] != value:
            return f"the head's {key}: {_shown(found[key])}, not {_shown(value)}"
    forms = [ExportedHead(frozen).state_dict() for frozen in (head, other)]
    for name, values in forms[1].items():
        if not np.array_equal(forms[0][name].float().cpu(), values.float().cpu()):
            return f"the head's {name}"
    return None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
