"""A task head inside a file: one product and one sum, written by name so that it can be read back."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from encoders import Head
from export.metadata import VerificationError

WEIGHT, BIAS = "head.weight", "head.bias"
Part = TypeVar("Part", bound=nn.Module)


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

    def fill(head: Head, stored: Mapping[str, Tensor]) -> None:
        head.linear.weight.copy_(stored[WEIGHT].T)
        head.linear.bias.copy_(stored[BIAS])

    return stored_part(proto, path, "head", Head, fill)


def stored_part(
    proto: onnx.ModelProto, path: str | Path, what: str, form: Callable[..., Part],
    fill: Callable[[Part, Mapping[str, Tensor]], None],
) -> Part | None:  # fmt: skip
    """A module that a file describes by its arguments, filled with the file's numbers; None where it has none.

    Args:
        proto: the file.
        path: its name, for errors.
        what: key of its description, and beginning of its numbers' names.
        form: takes the arguments.
        fill: copies numbers by name into it.

    Raises:
        VerificationError: the file describes one that it does not hold.
    """
    description = next((prop.value for prop in proto.metadata_props if prop.key == what), "null")
    tensors = [tensor for tensor in proto.graph.initializer if tensor.name.startswith(f"{what}.")]
    try:
        arguments = json.loads(description)
        if arguments is None:
            return None
        part = form(**arguments)
        with torch.no_grad():
            fill(part, {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in tensors})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        again = f"describes a {what} that it does not hold: export it again"
        raise VerificationError(f"{path} {again} ({error})") from error
    return part.eval().requires_grad_(False)


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
