"""The log-mel front end inside a file: a Fourier transform by two products, tables that take no room."""

import copy

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from encoders.speech.frames import frame_mask
from encoders.speech.log_mel import HOP, WINDOW, LogMel

BINS = WINDOW // 2 + 1
COSINES = "front_end.inner.power_spectrum.cosines"
SINES = "front_end.inner.power_spectrum.sines"
FILTERS = "front_end.inner.filters"
# cos(2 pi j / 400); a sine is the cosine 100 steps, a quarter of a turn, earlier.
CIRCLE = np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW).astype(np.float32)
QUARTER = WINDOW // 4


class ProductPowerSpectrum(nn.Module):
    """`encoders.speech.log_mel.PowerSpectrum` by matrix products, a hundred times faster than ONNX Runtime's STFT.

    The Hann window is zero at sample 0 and symmetric about sample 200. So a frame's real part needs only sums, its
    imaginary part only differences, of samples at the same distance from its middle: half the products.
    Log-mels are within 5e-5 of torch's; only bands near the floor, under a loud tone, lose more digits than an FFT's.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self) -> None:
        super().__init__()
        turns = torch.outer(torch.arange(1, WINDOW // 2 + 1), torch.arange(BINS))
        circle = torch.from_numpy(CIRCLE)
        self.register_buffer("cosines", circle[turns % WINDOW] * _half_window(), persistent=False)
        self.register_buffer("sines", circle[(turns - QUARTER) % WINDOW] * _half_window(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveform (batch, samples), edges padded, to (batch, 201, frames) without the last frame."""
        frames = (waveform.shape[1] - WINDOW) // HOP
        hops = waveform[:, : (frames + 2) * HOP].unflatten(1, (frames + 2, HOP))
        overlap = WINDOW - 2 * HOP
        windows = torch.cat([hops[:, :-2], hops[:, 1:-1], hops[:, 2:, :overlap]], dim=2)  # (batch, frames, 400)
        first, mirrored = windows[..., 1 : WINDOW // 2 + 1], windows[..., WINDOW // 2 :].flip(2)
        real, imaginary = (first + mirrored) @ self.cosines, (first - mirrored) @ self.sines
        return (real.square() + imaginary.square()).transpose(1, 2)


class ExportedFrontEnd(nn.Module):
    """A front end in operators that every runtime has; samples beyond a clip's length may be anything.

    Args:
        front_end: an encoder's; left untouched.
    """

    def __init__(self, front_end: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(front_end)
        if isinstance(self.inner, LogMel):
            self.inner.power_spectrum = ProductPowerSpectrum()  # type: ignore[assignment]

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveform (batch, samples) and lengths in samples to what the encoder takes."""
        silent = torch.zeros((), dtype=waveform.dtype)
        waveform = torch.where(frame_mask(lengths, waveform.shape[1]), waveform, silent)
        outputs: tuple[Tensor, Tensor] = self.inner(waveform, lengths)
        return outputs


def shrink_tables(proto: onnx.ModelProto) -> None:
    """Replace the front end's matrices, in place, by operators that ONNX Runtime computes once, at session start.

    Cosines and sines become look-ups into one turn of the circle, the mel filters their non-zeros:
    0.4 MB in 16 kB, with the same numbers bit for bit.
    """
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    if COSINES not in stored:
        return
    filters = numpy_helper.to_array(stored[FILTERS])
    for name in (COSINES, SINES, FILTERS):
        proto.graph.initializer.remove(stored[name])
    tables, nodes = _trigonometry()
    more_tables, more_nodes = _sparse(FILTERS, filters)
    proto.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in (tables | more_tables).items()
    )
    for node in reversed(nodes + more_nodes):
        proto.graph.node.insert(0, node)


def _trigonometry() -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    samples, bins = np.arange(1, WINDOW // 2 + 1).reshape(-1, 1), np.arange(BINS)
    tables = {
        "front_end.samples": samples, "front_end.bins": bins, "front_end.turn": np.array(WINDOW),
        "front_end.quarter": np.array(WINDOW - QUARTER), "front_end.circle": CIRCLE,
        "front_end.window": _half_window().numpy(),
    }  # fmt: skip
    steps = [
        ("Mul", ["samples", "bins"], "steps"),
        ("Mod", ["steps", "turn"], "cosine_steps"),
        ("Add", ["steps", "quarter"], "late_steps"),
        ("Mod", ["late_steps", "turn"], "sine_steps"),
        ("Gather", ["circle", "cosine_steps"], "cosine"),
        ("Gather", ["circle", "sine_steps"], "sine"),
    ]
    nodes = [
        helper.make_node(
            kind, [f"front_end.{name}" for name in takes], [f"front_end.{gives}"], name=f"front_end.{gives}"
        )
        for kind, takes, gives in steps
    ]
    for name, values in ((COSINES, "front_end.cosine"), (SINES, "front_end.sine")):
        nodes.append(helper.make_node("Mul", [values, "front_end.window"], [name], name=name))
    return tables, nodes


def _sparse(name: str, matrix: np.ndarray) -> tuple[dict[str, np.ndarray], list[onnx.NodeProto]]:
    """A matrix by its non-zeros."""
    places, values = np.argwhere(matrix), matrix[np.nonzero(matrix)]
    tables = {f"{name}.places": places, f"{name}.values": values, f"{name}.shape": np.array(matrix.shape)}
    zeros = helper.make_node("ConstantOfShape", [f"{name}.shape"], [f"{name}.zeros"], name=f"{name}.zeros")
    parts = [f"{name}.zeros", f"{name}.places", f"{name}.values"]
    return tables, [zeros, helper.make_node("ScatterND", parts, [name], name=name)]


def _half_window() -> Tensor:
    """Hann window from sample 1 to the middle one, shape (200, 1)."""
    window = torch.hann_window(WINDOW)[1 : WINDOW // 2 + 1].unsqueeze(1)
    window[-1] /= 2  # the middle sample is its own mirror image
    return window
