"""Where a file's features depart from torch's: torch follows the file, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import onnx
from torch import Tensor

from export.check.agreement import frame_errors
from export.check.following import Followed, follow, probe
from export.graph.pipeline import Pipeline, run_in_torch
from quant import BitWidth


@dataclass
class Departure:
    """Between which layers, in the order they run, the numbers depart.

    Attributes:
        after: last layer that gets what it gets in torch; None when the first does not.
        before: first layer that does not; None when all do.
        front_end: the file makes log-mels of its own, which the first layer gets.
    """

    after: str | None
    before: str | None
    front_end: bool = False

    def __str__(self) -> str:
        places = [f"after layer {self.after}"] * bool(self.after) + [f"before layer {self.before}"] * bool(self.before)
        if self.front_end and not self.after:
            places.insert(0, "in the front end")
        return f"features depart {' and '.join(places) or 'in a graph whose layers have no names'}"


def find_departure(
    proto: onnx.ModelProto,
    reference: Pipeline,
    run: BitWidth,
    batches: Sequence[tuple[Tensor, ...]],
    limit: float,
) -> Departure | None:
    """Compare what each convolution and linear layer gets, given that all layers before got what they get in the file.

    Args:
        proto: a file written by `to_onnx`.
        reference: what the file holds, in torch.
        run: bit-width.
        batches: inputs of the file on which features depart.
        limit: error over variance of a tensor, and of the features.

    Returns:
        of the first batch that has one; None when only values near an edge differ.
    """
    probed = probe(proto, reference.encoder, run, floats=True)
    for inputs in batches:
        in_torch = partial(run_in_torch, reference, run, inputs)
        followed = follow(probed, reference.encoder, run, inputs, in_torch, limit)
        departure = first_departure(followed, reference.front_end is not None)
        if departure is not None:
            return departure
        found, expected = followed.found[0], followed.expected[0]
        if found.shape != expected.shape or (frame_errors(found.flatten(0, -2), expected.flatten(0, -2)) > limit).any():
            return Departure(next(reversed(followed.equal), None), None)
    return None


def first_departure(followed: Followed, front_end: bool) -> Departure | None:
    """Where the first tensor departs that was compared; None when none does.

    Args:
        followed: of `follow`.
        front_end: the file makes log-mels of its own.
    """
    order = list(followed.equal)
    before = next((name for name, equal in followed.equal.items() if not equal), None)
    if before is None:
        return None
    place = order.index(before)
    return Departure(order[place - 1] if place else None, before, front_end)
