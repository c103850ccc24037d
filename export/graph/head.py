"""A task head inside a file: one product and one sum, written by name so that it can be read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    numbers = [ExportedHead(frozen).state_dict() for frozen in (head, other)]
    return difference("head", head.arguments, other.arguments, *numbers)


def difference(
    what: str,
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    found_numbers: Mapping[str, Tensor],
    expected_numbers: Mapping[str, Tensor],
) -> str | None:
    """The first key, or else the first of the numbers, that is another than expected; None when all are equal."""
    for key, value in expected.items():
        if found[key] != value:
            return f"the {what}'s {key}: {_shown(found[key])}, not {_shown(value)}"
    for name, values in expected_numbers.items():
        if not np.array_equal(found_numbers[name].float().cpu(), values.float().cpu()):
            return f"the {what}'s {name}"
    return None


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
